#pragma once
// The context switch: emu_switch(&saved, next) stores the registers a function must keep on the running stack, leaves
// its stack pointer in `saved` and goes on where the stack `next` was left. first_frame() lays out a stack so that
// the first switch to it enters a function.
#include <cstdint>

extern "C" void emu_switch(void** saved, void* next);

#if defined(__x86_64__)
asm(R"(
.text
.hidden emu_switch
.globl emu_switch
.type emu_switch, @function
emu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emu_switch, .-emu_switch
)");

static void* first_frame(void* top, void (*enter)()) {
  uint64_t* sp = (uint64_t*)((uint64_t)top & ~uint64_t(15));
  *--sp = 0;                // where `enter` would return to; it never does
  *--sp = (uint64_t)enter;  // what `ret` pops
  for (int i = 0; i < 6; i++) *--sp = 0;
  return sp;
}
#elif defined(__aarch64__)
asm(R"(
.text
.hidden emu_switch
.globl emu_switch
.type emu_switch, %function
emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emu_switch, .-emu_switch
)");

static void* first_frame(void* top, void (*enter)()) {
  uint64_t* sp = (uint64_t*)((uint64_t)top & ~uint64_t(15)) - 20;
  for (int i = 0; i < 20; i++) sp[i] = 0;
  sp[11] = (uint64_t)enter;  // x30
  return sp;
}
#else
#error "the emulator has no context switch for this processor"
#endif
