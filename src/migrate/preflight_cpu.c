/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program asks the processor once, when it starts, and then uses what it has found: after a migration to a lesser
 * processor it would die of an illegal instruction, maybe hours later. So every feature that a program can use without
 * the kernel's help counts, whether this tree uses it or not; nobody can tell from outside.
 */
#include "migrate/preflight_cpu.h"

#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/fd.h"

enum cpu_word { L1_ECX, L1_EDX, L7_EBX, L7_ECX, L7_EDX, L7_1_EAX, EXT_ECX, EXT_EDX };
_Static_assert(EXT_EDX + 1 == CPU_WORD_COUNT, "one word each");

static const struct {
	uint8_t word, bit;
	const char *name;
} features[] = {
	{L1_ECX, 0, "sse3"},
	{L1_ECX, 1, "pclmulqdq"},
	{L1_ECX, 9, "ssse3"},
	{L1_ECX, 12, "fma"},
	{L1_ECX, 13, "cx16"},
	{L1_ECX, 19, "sse4_1"},
	{L1_ECX, 20, "sse4_2"},
	{L1_ECX, 22, "movbe"},
	{L1_ECX, 23, "popcnt"},
	{L1_ECX, 25, "aes"},
	{L1_ECX, 26, "xsave"},
	{L1_ECX, 28, "avx"},
	{L1_ECX, 29, "f16c"},
	{L1_ECX, 30, "rdrand"},
	{L1_EDX, 15, "cmov"},
	{L1_EDX, 23, "mmx"},
	{L1_EDX, 24, "fxsr"},
	{L1_EDX, 25, "sse"},
	{L1_EDX, 26, "sse2"},
	{L7_EBX, 0, "fsgsbase"},
	{L7_EBX, 3, "bmi1"},
	{L7_EBX, 4, "hle"},
	{L7_EBX, 5, "avx2"},
	{L7_EBX, 8, "bmi2"},
	{L7_EBX, 9, "erms"},
	{L7_EBX, 11, "rtm"},
	{L7_EBX, 16, "avx512f"},
	{L7_EBX, 17, "avx512dq"},
	{L7_EBX, 18, "rdseed"},
	{L7_EBX, 19, "adx"},
	{L7_EBX, 21, "avx512ifma"},
	{L7_EBX, 23, "clflushopt"},
	{L7_EBX, 24, "clwb"},
	{L7_EBX, 28, "avx512cd"},
	{L7_EBX, 29, "sha_ni"},
	{L7_EBX, 30, "avx512bw"},
	{L7_EBX, 31, "avx512vl"},
	{L7_ECX, 1, "avx512vbmi"},
	{L7_ECX, 4, "ospke"},
	{L7_ECX, 5, "waitpkg"},
	{L7_ECX, 6, "avx512_vbmi2"},
	{L7_ECX, 8, "gfni"},
	{L7_ECX, 9, "vaes"},
	{L7_ECX, 10, "vpclmulqdq"},
	{L7_ECX, 11, "avx512_vnni"},
	{L7_ECX, 12, "avx512_bitalg"},
	{L7_ECX, 14, "avx512_vpopcntdq"},
	{L7_ECX, 22, "rdpid"},
	{L7_ECX, 25, "cldemote"},
	{L7_ECX, 27, "movdiri"},
	{L7_ECX, 28, "movdir64b"},
	{L7_EDX, 2, "avx512_4vnniw"},
	{L7_EDX, 3, "avx512_4fmaps"},
	{L7_EDX, 4, "fsrm"},
	{L7_EDX, 8, "avx512_vp2intersect"},
	{L7_EDX, 14, "serialize"},
	{L7_EDX, 22, "amx_bf16"},
	{L7_EDX, 23, "avx512_fp16"},
	{L7_EDX, 24, "amx_tile"},
	{L7_EDX, 25, "amx_int8"},
	{L7_1_EAX, 4, "avx_vnni"},
	{L7_1_EAX, 5, "avx512_bf16"},
	{L7_1_EAX, 23, "avx_ifma"},
	{EXT_ECX, 0, "lahf_lm"},
	{EXT_ECX, 5, "lzcnt"},
	{EXT_ECX, 6, "sse4a"},
	{EXT_ECX, 8, "prefetchw"},
	{EXT_ECX, 11, "xop"},
	{EXT_ECX, 16, "fma4"},
	{EXT_ECX, 21, "tbm"},
	{EXT_EDX, 27, "rdtscp"},
	{EXT_EDX, 29, "long_mode"},
};

#if defined(__x86_64__)
static uint64_t read_xcr0(void)
{
	uint32_t low, high;

	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (uint64_t)high << 32 | low;
}

void cpu_features_read(struct cpu_features *ret_features)
{
	struct cpu_features cpu = {};
	uint32_t a, b, c, d;

	__cpuid(0, a, b, c, d);
	uint32_t highest = a;
	memcpy(cpu.vendor, &b, 4);
	memcpy(cpu.vendor + 4, &d, 4);
	memcpy(cpu.vendor + 8, &c, 4);
	__cpuid(1, a, b, cpu.words[L1_ECX], cpu.words[L1_EDX]);
	if (highest >= 7) {
		__cpuid_count(7, 0, a, cpu.words[L7_EBX], cpu.words[L7_ECX], cpu.words[L7_EDX]);
		if (a >= 1)
			__cpuid_count(7, 1, cpu.words[L7_1_EAX], b, c, d);
	}
	__cpuid(0x80000001, a, b, cpu.words[EXT_ECX], cpu.words[EXT_EDX]);
	if (cpu.words[L1_ECX] & bit_OSXSAVE) {
		cpu.xfeatures = read_xcr0();
		__cpuid_count(0xd, 0, a, cpu.xsave_bytes, c, d);
	}
	*ret_features = cpu;
}
#else
void cpu_features_read(struct cpu_features *ret_features)
{
	*ret_features = (struct cpu_features){};
}
#endif

size_t cpu_features_missing(const struct cpu_features *needed, const struct cpu_features *there, char *names,
			    size_t size)
{
	uint64_t register_sets = needed->xfeatures & ~there->xfeatures;
	size_t count = 0, used = 0;

	names[0] = 0;
	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		if (!(needed->words[features[i].word] & ~there->words[features[i].word] & (1u << features[i].bit)))
			continue;
		count++;
		if (used < size)
			used += (size_t)snprintf(names + used, size - used, "%s%s", used ? " " : "", features[i].name);
	}
	if (register_sets) {
		count++;
		if (used < size)
			snprintf(names + used, size - used, "%sregister sets 0x%llx", used ? " " : "",
				 (unsigned long long)register_sets);
	}
	return count;
}
