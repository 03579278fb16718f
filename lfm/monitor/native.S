# What a forker and the processes that it makes do without the interpreter: x86-64, Linux, CPython's calling
# conventions for methods without an argument (loop, receive, measure) and with one (answer).  native.py holds what
# this assembles to and fills in the values marked @; a test assembles this file (GNU as) and compares.
#
# A process that forks has all its pages write-protected, and so has its child: each page that either writes to
# costs a fault and a copy, and the interpreter writes to some with every call of a function.  Nothing here writes to
# memory that is not shared, but for what a call's process must have of its own: its work and its random numbers.
# %r9 is the shared page; of the registers used the kernel changes only %rax, %rcx and %r11.

        .set    ID, 0                   # of the running call
        .set    PID, 56                 # the child
        .set    SAID, 80                # what the forker was told
        .set    TROUBLE, 88             # what the kernel said against the call's directory and affinity; 0: nothing
        .set    SIZE, 96                # of the message with the work
        .set    LEARN, 104              # 1: find out which pages calls write to
        .set    FILES, 112              # kB of mapped files before the first call of a forker, and how much they grew
        .set    BEFORE, 128             # struct rusage before the call,
        .set    AFTER, 272              # after it,
        .set    CHILDREN, 416           # and of the processes that it waited for
        .set    BEGAN, 560              # struct timespec
        .set    ENDED, 576
        .set    QUIET, 592              # 1: the call has printed nothing and has no other process: nothing more to tell
        .set    HELD, 600               # bytes that the forker holds for a function
        .set    IO, 608                 # the beginning of /proc/self/io
        .set    IO_SIZE, 64
        .set    FIGURES, 560            # bytes from FILES to here: they go with the answer
        .set    IOVEC, 672
        .set    LEFT, 704               # bytes in a pipe
        .set    PRINTED, 712            # 1: the monitor has taken something out of one
        .set    PAGES, 1024             # how many pages calls write to, and their addresses
        .set    MAXRSS, 32              # in struct rusage
        .set    MINFLT, 64
        .set    LENGTH, 16              # in PyBytesObject
        .set    BYTES, 32

        .text

# In the forker: for each 'f' that it hears clone, False in the child; True on anything else, or trouble.
loop:
        movl    $45, %eax               # recvfrom(socket, &SAID, 1, 0, NULL, NULL)
        movl    $0xa1a1a1a1, %edi       # @socket
        movabsq $0xaaaaaaaaaaaaaaaa, %rsi # @page
        addq    $SAID, %rsi
        movl    $1, %edx
        xorl    %r10d, %r10d
        xorl    %r8d, %r8d
        xorl    %r9d, %r9d
        syscall
        cmpl    $-4, %eax               # EINTR
        je      loop
        cmpl    $1, %eax
        jne     true
        cmpb    $0x66, (%rsi)           # 'f'
        jne     true
        movl    $56, %eax               # clone(flags, NULL, &PID, tid, 0): PID is written before the child runs
        movl    $0xa2a2a2a2, %edi       # @flags
        leaq    PID-SAID(%rsi), %rdx
        xorl    %esi, %esi
        movabsq $0xabababababababab, %r10 # @tid: where glibc keeps the thread's number
        syscall
        testl   %eax, %eax
        jg      loop
        js      true
        movl    $3, %eax                # in the child: close(socket)
        movl    $0xa1a1a1a1, %edi       # @socket
        syscall
        movl    $0xa3a3a3a3, %r8d       # @parent; 0: something else ends this process with its parent
        testl   %r8d, %r8d
        jz      2f
        movl    $157, %eax              # prctl(PR_SET_PDEATHSIG, SIGKILL)
        movl    $1, %edi
        movl    $9, %esi
        syscall
        movl    $110, %eax              # getppid()
        syscall
        cmpl    %r8d, %eax
        jne     failed
2:      leaq    random(%rip), %r8
3:      movq    (%r8), %rdi             # getrandom(address, size, 0) for each
        testq   %rdi, %rdi
        jz      false
        movq    8(%r8), %rsi
        xorl    %edx, %edx
        movl    $318, %eax
        syscall
        addq    $16, %r8
        jmp     3b

# Have the pages copied that calls write to, while there is time; read the work and begin: True if something is to be looked at first (no files counted yet, trouble with its directory).
receive:
        movabsq $0xaaaaaaaaaaaaaaaa, %r9 # @page
        movq    PAGES(%r9), %rcx
9:      testq   %rcx, %rcx
        jz      1f
        movq    PAGES(%r9,%rcx,8), %rax
        lock orb $0, (%rax)
        decq    %rcx
        jmp     9b
1:
        movl    $98, %eax               # getrusage(RUSAGE_SELF, &BEFORE)
        xorl    %edi, %edi
        leaq    BEFORE(%r9), %rsi
        syscall
4:      xorl    %eax, %eax              # read(channel, buffer, size)
        movl    $0xa4a4a4a4, %edi       # @channel
        movabsq $0xacacacacacacacac, %rsi # @buffer
        movl    $0xa5a5a5a5, %edx       # @size
        syscall
        cmpl    $-4, %eax
        je      4b
        testl   %eax, %eax
        jle     left
        movq    %rax, SIZE(%r9)
        leaq    (%rsi,%rax), %r8        # the message ends with: mask, directory, their lengths (u32), id (u64)
        movq    -8(%r8), %rax
        movq    %rax, ID(%r9)           # from now on it has begun
        movl    $228, %eax              # clock_gettime(CLOCK_MONOTONIC, &BEGAN)
        movl    $1, %edi
        leaq    BEGAN(%r9), %rsi
        syscall
        movl    -16(%r8), %esi
        movl    -12(%r8), %eax
        leaq    -16(%r8), %rdi
        subq    %rax, %rdi
        movq    %rdi, %rdx
        subq    %rsi, %rdx
        testl   %eax, %eax
        jz      5f
        movl    $80, %eax               # chdir(directory)
        syscall
5:      movq    %rax, TROUBLE(%r9)
        testl   %esi, %esi
        jz      6f
        movl    $203, %eax              # sched_setaffinity(0, size, mask)
        xorl    %edi, %edi
        syscall
        orq     %rax, TROUBLE(%r9)
6:      cmpq    $0, TROUBLE(%r9)
        jne     true
        cmpq    $0, FILES(%r9)
        je      true
        jmp     false

# Take the figures: True if memory grew by more than a little, or may have, and is worth a look at what it is; or if this
# call is to learn, and has read what the kernel knows of its pages.
measure:
        movabsq $0xaaaaaaaaaaaaaaaa, %r9 # @page
        movl    $98, %eax               # getrusage(RUSAGE_SELF, &AFTER)
        xorl    %edi, %edi
        leaq    AFTER(%r9), %rsi
        syscall
        movl    $98, %eax               # getrusage(RUSAGE_CHILDREN, &CHILDREN)
        movl    $-1, %edi
        leaq    CHILDREN(%r9), %rsi
        syscall
        movl    $228, %eax              # clock_gettime(CLOCK_MONOTONIC, &ENDED)
        movl    $1, %edi
        leaq    ENDED(%r9), %rsi
        syscall
        cmpq    $1, LEARN(%r9)
        jne     2f
        movl    $2, %eax                # open(pagemap, O_RDONLY)
        leaq    pagemap(%rip), %rdi
        xorl    %esi, %esi
        syscall
        movl    %eax, %edi
        movabsq $0xafafafafafafafaf, %r8 # @table: size, where in the file, and where to; 0 ends it
1:      movq    (%r8), %rdx
        testq   %rdx, %rdx
        jz      true
        movq    8(%r8), %r10
        movq    16(%r8), %rsi
        movl    $17, %eax               # pread64(fd, to, size, at)
        syscall
        addq    $24, %r8
        jmp     1b
2:      movq    AFTER+MAXRSS(%r9), %rax
        subq    BEFORE+MAXRSS(%r9), %rax
        cmpq    $4096, %rax             # kB that it surely has
        jg      true
        subq    FILES+8(%r9), %rax
        movq    AFTER+MINFLT(%r9), %rdx
        subq    BEFORE+MINFLT(%r9), %rdx
        shlq    $2, %rdx
        subq    %rax, %rdx
        cmpq    $1024, %rdx             # kB that it may have besides
        jg      true
false:
        movabsq $0xadadadadadadadad, %rax # @False
        ret
true:
        movabsq $0xaeaeaeaeaeaeaeae, %rax # @True
        ret

# Send these bytes and the figures, and leave.  Where the call is surely all there was, the figures say so: then nobody
# has to wait for its end to know what it did.
answer:
        movabsq $0xaaaaaaaaaaaaaaaa, %r9 # @page
        leaq    BYTES(%rsi), %rax
        movq    %rax, IOVEC(%r9)
        movq    LENGTH(%rsi), %rax
        movq    %rax, IOVEC+8(%r9)
        leaq    FILES(%r9), %rax
        movq    %rax, IOVEC+16(%r9)
        movq    $FIGURES, IOVEC+24(%r9)
        movq    $0, QUIET(%r9)
        movl    $2, %eax                # open("/proc/self/io", O_RDONLY)
        leaq    io(%rip), %rdi
        xorl    %esi, %esi
        syscall
        testl   %eax, %eax
        js      7f
        movl    %eax, %edi
        xorl    %eax, %eax              # read(fd, &IO, IO_SIZE)
        leaq    IO(%r9), %rsi
        movl    $IO_SIZE, %edx
        syscall
        cmpl    $IO_SIZE, %eax
        jne     7f
        movl    $247, %eax              # waitid(P_ALL, 0, NULL, WNOHANG|WEXITED|WNOWAIT|__WALL, NULL)
        xorl    %edi, %edi
        xorl    %esi, %esi
        xorl    %edx, %edx
        movl    $0x41000005, %r10d
        xorl    %r8d, %r8d
        syscall
        cmpl    $-10, %eax              # ECHILD: it has none now,
        jne     7f
        cmpq    $0, CHILDREN+MINFLT(%r9) # nor waited for any, that may have left others
        jne     7f
        leaq    LEFT(%r9), %rdx
        movl    $0xa6a6a6a6, %edi       # @stdout
        call    left_in
        jne     7f
        movl    $0xa7a7a7a7, %edi       # @stderr
        call    left_in
        jne     7f
        cmpq    $0, PRINTED(%r9)        # after the pipes: the monitor says so before it takes what is in them
        jne     7f
        movq    $1, QUIET(%r9)
7:      movl    $20, %eax               # writev(channel, IOVEC, 2)
        movl    $0xa4a4a4a4, %edi       # @channel
        leaq    IOVEC(%r9), %rsi
        movl    $2, %edx
        syscall
        cmpl    $-4, %eax
        je      7b
        testl   %eax, %eax
        js      failed
left:
        xorl    %edi, %edi
        jmp     8f
failed:
        movl    $1, %edi
8:      movl    $231, %eax              # exit_group
        syscall

left_in:                                # ioctl(pipe, FIONREAD, &LEFT): equal if it is a pipe, and empty
        movl    $16, %eax
        movl    $0x541b, %esi
        syscall
        testl   %eax, %eax
        jne     9f
        cmpl    $0, LEFT(%r9)
9:      ret

pagemap:
        .asciz  "/proc/self/pagemap"
io:
        .asciz  "/proc/self/io"
        .balign 8
random:                                 # @random: address and size of what is different in every child; 0 ends it
