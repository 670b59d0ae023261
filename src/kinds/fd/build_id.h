/* SPDX-License-Identifier: Apache-2.0 */
/* The GNU build id of an ELF file: tells whether a program or library is the one that was dumped. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { BUILD_ID_MAX_WORDS = 16 };

/*
 * Reads the build id of the file behind @fd (readable) as words of four bytes in file order, the last one padded with
 * zeros. Returns their number, 0 if the file is no ELF file or has none.
 */
size_t build_id_read(int fd, uint32_t words[BUILD_ID_MAX_WORDS]);
