/* Every difference between processors: the registers of an interrupted thread.
 *
 * In the order that DWARF numbers them, which is the order unwinding tables speak of.
 * Source: System V ABI for AMD64, figure 3.36; DWARF for the Arm 64-bit architecture.
 */
#ifndef SB_MACHINE_H
#define SB_MACHINE_H

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#if defined(__x86_64__)

#define SB_MACHINE "x86_64"
enum { SB_REGISTERS = 17, SB_STACK_POINTER = 7 }; /* the last is the program counter */

static inline void
sb_registers(const ucontext_t *of, uint64_t *out)
{
    static const int ORDER[SB_REGISTERS] = {
        REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP, REG_R8,
        REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP};
    for (int i = 0; i < SB_REGISTERS; i++) {
        out[i] = (uint64_t)of->uc_mcontext.gregs[ORDER[i]];
    }
}

#elif defined(__aarch64__)

#define SB_MACHINE "aarch64"
enum { SB_REGISTERS = 33, SB_STACK_POINTER = 31 }; /* x0 to x30, sp, the program counter */

static inline void
sb_registers(const ucontext_t *of, uint64_t *out)
{
    for (int i = 0; i < SB_STACK_POINTER; i++) {
        out[i] = of->uc_mcontext.regs[i];
    }
    out[SB_STACK_POINTER] = of->uc_mcontext.sp;
    out[SB_REGISTERS - 1] = of->uc_mcontext.pc;
}

#else

#define SB_MACHINE "" /* none whose registers we know */
enum { SB_REGISTERS = 1, SB_STACK_POINTER = 0 };

static inline void
sb_registers(const ucontext_t *of, uint64_t *out)
{
    (void)of;
    out[0] = 0;
}

#endif

/* Whether the thread ran on its alternate stack, which no Python frame is on. */
static inline int
sb_is_on_other_stack(const ucontext_t *of, uint64_t stack_pointer)
{
    uint64_t from = (uint64_t)(uintptr_t)of->uc_stack.ss_sp;
    return stack_pointer >= from && stack_pointer - from < of->uc_stack.ss_size;
}

#endif
