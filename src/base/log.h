/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: one file or standard error, in the line format that CRIU's users grep:
 * "(SSSSSS.UUUUUU) Error (file.c:line): text", Warn, or no word for information.
 * The log's descriptor and level are the only mutable file-scope objects of the program.
 */
#pragma once

enum log_level { LOG_LEVEL_NONE = 0, LOG_LEVEL_ERROR = 1, LOG_LEVEL_WARN = 2, LOG_LEVEL_INFO = 3, LOG_LEVEL_DEBUG = 4 };

/* Lines above @level are dropped; @fd stays the caller's. Times count from this call. */
void log_setup(int fd, enum log_level level);
/* Moves the log to another descriptor of the same file (restored tasks keep it at a number they do not need). */
void log_move(int fd);
/* The descriptor that lines go to. */
int log_fd(void);
enum log_level log_level(void);
/* From log_set_pid() on, lines go to the new file "<name>.<pid>" below @dirfd. @name stays the caller's. */
void log_split(int dirfd, const char *name);
/* The pid that is put after the time (restored tasks); 0 = none. */
void log_set_pid(int pid);

void log_line(enum log_level level, const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

#define log_at(level, ...)                                                     \
	do {                                                                   \
		if ((level) <= log_level())                                    \
			log_line(level, __FILE_NAME__, __LINE__, __VA_ARGS__); \
	} while (0)
#define log_error(...) log_at(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_at(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_at(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_LEVEL_DEBUG, __VA_ARGS__)
