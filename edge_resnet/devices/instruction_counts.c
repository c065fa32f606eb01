/* A plugin of qemu's user-mode emulation that counts the instructions which the emulated program runs, and
 * some kinds of them apart. Whenever the program writes to the file descriptor `mark`, the counts so far are
 * added to the file `out` as a line of numbers, in the order of the kinds below.
 *
 *     qemu-aarch64 -plugin FILE.so,out=PATH,mark=N PROGRAM
 *
 * Built with -DQEMU_PLUGIN_VERSION=1 for qemu before 9.0, 2 since then: of the two interfaces, only functions
 * that both have are used. Their declarations are from qemu's documentation (docs/devel/tcg-plugins), as
 * not every distribution ships qemu-plugin.h.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    bool system_emulation;
    union { struct { int smp_vcpus, max_vcpus; } system; };
} qemu_info_t;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_CB_RW_REGS };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t,
                                                  void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned int, void *),
                                                 enum qemu_plugin_cb_flags, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(
    qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                               uint64_t, uint64_t, uint64_t, uint64_t));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

/* The kinds, by the order in which their counts are written. */
enum { ALL, SDOT, UDOT, USDOT, SMMLA, UMMLA, USMMLA, PMADDUBSW, KINDS };

/* Of ARM64, from the Arm Architecture Reference Manual: vectors, vectors by element, and SVE's. */
static const struct { uint32_t mask, value; int kind; } arm[] = {
    {0xBFE0FC00, 0x0E809400, SDOT},  {0xBFC0F400, 0x0F80E000, SDOT},   {0xFFE0FC00, 0x44800000, SDOT},
    {0xFFE0FC00, 0x44A00000, SDOT},  {0xBFE0FC00, 0x2E809400, UDOT},   {0xBFC0F400, 0x2F80E000, UDOT},
    {0xFFE0FC00, 0x44800400, UDOT},  {0xFFE0FC00, 0x44A00400, UDOT},   {0xBFE0FC00, 0x0E809C00, USDOT},
    {0xBFC0F400, 0x0F80F000, USDOT}, {0xBFC0F400, 0x0F00F000, USDOT},  {0xFFE0FC00, 0x44807800, USDOT},
    {0xFFE0FC00, 0x44A01800, USDOT}, {0xFFE0FC00, 0x44A01C00, USDOT},  {0xFFE0FC00, 0x4E80A400, SMMLA},
    {0xFFE0FC00, 0x45009800, SMMLA}, {0xFFE0FC00, 0x6E80A400, UMMLA},  {0xFFE0FC00, 0x45C09800, UMMLA},
    {0xFFE0FC00, 0x4E80AC00, USMMLA}, {0xFFE0FC00, 0x45809800, USMMLA},
};

static uint64_t counts[KINDS];
static bool is_arm;
static uint64_t mark;
static const char *out;

/* What one translated block adds each time it runs. */
struct block { uint32_t adds[KINDS]; };

static int kind_of(const uint8_t *code, size_t size)
{
    if (is_arm) {
        uint32_t word;
        memcpy(&word, code, sizeof word);
        for (size_t i = 0; i < sizeof arm / sizeof *arm; i++) {
            if ((word & arm[i].mask) == arm[i].value) {
                return arm[i].kind;
            }
        }
        return ALL;
    }
    /* x86: (v)pmaddubsw, the multiplication that saturates in 16 bits, as VEX and as SSSE3 encode it. */
    if (size >= 5 && code[0] == 0xC4 && (code[1] & 0x1F) == 2 && (code[2] & 3) == 1 && code[3] == 0x04) {
        return PMADDUBSW;
    }
    size_t at = size > 1 && (code[1] & 0xF0) == 0x40 ? 2 : 1;
    if (size >= at + 4 && code[0] == 0x66 && code[at] == 0x0F && code[at + 1] == 0x38 && code[at + 2] == 0x04) {
        return PMADDUBSW;
    }
    return ALL;
}

static void ran(unsigned int vcpu, void *data)
{
    const struct block *block = data;
    (void)vcpu;
    for (int kind = 0; kind < KINDS; kind++) {
        if (block->adds[kind]) {
            __atomic_fetch_add(&counts[kind], block->adds[kind], __ATOMIC_RELAXED);
        }
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    /* Kept for as long as the block may run, which is not told: until the process ends. */
    struct block *block = calloc(1, sizeof *block);
    size_t length = qemu_plugin_tb_n_insns(tb);
    (void)id;
    if (!block) {
        abort();
    }
    block->adds[ALL] = (uint32_t)length;
    for (size_t i = 0; i < length; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
        /* In user mode the program's memory is the host's. */
        const uint8_t *code = qemu_plugin_insn_haddr(instruction);
        int kind = code ? kind_of(code, qemu_plugin_insn_size(instruction)) : ALL;
        if (kind != ALL) {
            block->adds[kind]++;
        }
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, ran, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void called(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != (is_arm ? 64 : 1) || a1 != mark) { /* write */
        return;
    }
    FILE *file = fopen(out, "a");
    if (!file) {
        return;
    }
    for (int kind = 0; kind < KINDS; kind++) {
        fprintf(file, "%" PRIu64 "%c", __atomic_load_n(&counts[kind], __ATOMIC_RELAXED),
                kind + 1 < KINDS ? ' ' : '\n');
    }
    fclose(file);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    is_arm = !strcmp(info->target_name, "aarch64");
    if (!is_arm && strcmp(info->target_name, "x86_64")) {
        return -1;
    }
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4)) {
            out = strdup(argv[i] + 4);
        } else if (!strncmp(argv[i], "mark=", 5)) {
            mark = strtoull(argv[i] + 5, NULL, 10);
        }
    }
    if (!out || !mark) {
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
