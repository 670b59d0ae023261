/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file is untrusted: every offset is only ever given to pread(), every size is bounded by a buffer here.
 */
#include "kinds/fd/build_id.h"

#include <elf.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"

enum { MAX_PROGRAM_HEADERS = 64, MAX_NOTE_BYTES = 4096 };

struct note_segment {
	uint64_t offset, size;
};

static size_t align_note(size_t size)
{
	return (size + 3) & ~(size_t)3;
}

/* One PT_NOTE segment holds several notes, each with a header, a padded name and padded content. */
static size_t find_in_notes(const char *notes, size_t size, uint32_t *words)
{
	size_t at = 0;

	while (at + sizeof(Elf64_Nhdr) <= size) {
		Elf64_Nhdr note;
		memcpy(&note, notes + at, sizeof(note));
		size_t name = at + sizeof(note);
		if (note.n_namesz > size - name || note.n_descsz > size)
			return 0;
		size_t content = name + align_note(note.n_namesz);
		if (content > size || note.n_descsz > size - content)
			return 0;
		if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && !memcmp(notes + name, "GNU", 4)) {
			if (note.n_descsz > BUILD_ID_MAX_WORDS * sizeof(*words))
				return 0;
			memset(words, 0, BUILD_ID_MAX_WORDS * sizeof(*words));
			memcpy(words, notes + content, note.n_descsz);
			return align_note(note.n_descsz) / sizeof(*words);
		}
		at = content + align_note(note.n_descsz);
	}
	return 0;
}

static bool note_of_header(const char *header, bool is_64, struct note_segment *ret_segment)
{
	Elf64_Phdr wide;
	Elf32_Phdr narrow;

	if (is_64) {
		memcpy(&wide, header, sizeof(wide));
		*ret_segment = (struct note_segment){wide.p_offset, wide.p_filesz};
		return wide.p_type == PT_NOTE;
	}
	memcpy(&narrow, header, sizeof(narrow));
	*ret_segment = (struct note_segment){narrow.p_offset, narrow.p_filesz};
	return narrow.p_type == PT_NOTE;
}

static size_t search_segments(int fd, uint64_t offset, size_t count, bool is_64, uint32_t *words)
{
	char headers[MAX_PROGRAM_HEADERS * sizeof(Elf64_Phdr)], notes[MAX_NOTE_BYTES];
	size_t header_size = is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);

	if (count > MAX_PROGRAM_HEADERS || pread_full(fd, headers, count * header_size, offset) < 0)
		return 0;
	for (size_t i = 0; i < count; i++) {
		struct note_segment segment;
		if (!note_of_header(headers + i * header_size, is_64, &segment))
			continue;
		size_t size = segment.size < sizeof(notes) ? segment.size : sizeof(notes);
		size_t found = pread_full(fd, notes, size, segment.offset) < 0 ? 0 : find_in_notes(notes, size, words);
		if (found)
			return found;
	}
	return 0;
}

size_t build_id_read(int fd, uint32_t words[BUILD_ID_MAX_WORDS])
{
	union {
		unsigned char ident[EI_NIDENT];
		Elf64_Ehdr wide;
		Elf32_Ehdr narrow;
	} header = {};
	ssize_t got = pread(fd, &header, sizeof(header), 0);

	if (got < (ssize_t)sizeof(header.narrow) || memcmp(header.ident, ELFMAG, SELFMAG))
		return 0;
	if (header.ident[EI_CLASS] == ELFCLASS64 && got == sizeof(header.wide))
		return search_segments(fd, header.wide.e_phoff, header.wide.e_phnum, true, words);
	if (header.ident[EI_CLASS] == ELFCLASS32)
		return search_segments(fd, header.narrow.e_phoff, header.narrow.e_phnum, false, words);
	return 0;
}
