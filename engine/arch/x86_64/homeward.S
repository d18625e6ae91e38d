// Runs inside a tracee. See arch.h, HomewardCode().
    .section .rodata
    .globl stasis_homeward_begin, stasis_homeward_end, stasis_calls_begin, stasis_calls_made
stasis_homeward_begin:
    syscall
    movl $15, %eax          // __NR_rt_sigreturn
    syscall
    ud2
stasis_calls_begin:         // rbx: the next of r12 calls, struct CallInside
    movq (%rbx), %rax
    movq 8(%rbx), %rdi
    movq 16(%rbx), %rsi
    movq 24(%rbx), %rdx
    movq 32(%rbx), %r10
    movq 40(%rbx), %r8
    movq 48(%rbx), %r9
    syscall
stasis_calls_made:
    movq %rax, 56(%rbx)
    addq $64, %rbx
    decq %r12
    jnz stasis_calls_begin
    movl $15, %eax          // __NR_rt_sigreturn
    syscall
    ud2
stasis_homeward_end:
    .section .note.GNU-stack,"",@progbits
