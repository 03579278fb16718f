# The forker's loop: wait for a byte on its socket, clone, again.  forkloop.py holds what this assembles to, with
# the values marked @ filled in; a test assembles this file and compares.  x86-64, System V; GNU as, AT&T syntax.
#
# It writes to no memory: what a process writes to after it has forked is copied, page by page.  The kernel writes
# the byte and the child's number to a page that is shared, and not copied.  Called as a Python method without
# arguments it returns one of two objects, of each of which its caller has given it a reference.

        .text
wait:
        movl    $45, %eax                       # recvfrom(socket, byte, 1, 0, NULL, NULL)
        movl    $0x11111111, %edi               # @socket
        movabsq $0x2222222222222222, %rsi       # @byte, in the shared page
        movl    $1, %edx
        xorl    %r10d, %r10d
        xorl    %r8d, %r8d
        xorl    %r9d, %r9d
        syscall
        cmpl    $-4, %eax                       # EINTR
        je      wait
        cmpl    $1, %eax
        jne     other
        cmpb    $0x66, (%rsi)                   # 'f': fork
        jne     other
        movl    $56, %eax                       # clone(flags, NULL, pid, tid, 0)
        movl    $0x33333333, %edi               # @flags
        xorl    %esi, %esi
        movabsq $0x4444444444444444, %rdx       # @pid, in the shared page: written before the child runs
        movabsq $0x5555555555555555, %r10       # @tid: where glibc keeps the thread's number
        xorl    %r8d, %r8d
        syscall
        testl   %eax, %eax
        jg      wait
        movabsq $0x6666666666666666, %rax       # @child
        je      done
other:
        movabsq $0x7777777777777777, %rax       # @other: something else was said, or went wrong
done:
        ret
