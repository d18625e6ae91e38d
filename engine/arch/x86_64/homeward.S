// Runs inside a tracee, from a page of its own. See arch.h, HomewardCode().
    .section .rodata
    .globl stasis_homeward_begin, stasis_homeward_end
stasis_homeward_begin:
    syscall
    movl $15, %eax          // __NR_rt_sigreturn
    syscall
    ud2
stasis_homeward_end:
    .section .note.GNU-stack,"",@progbits
