// The frame of rt_sigreturn(2).
//
// Layout  struct rt_sigframe (arch/x86/include/asm/sigframe.h): return address, ucontext, siginfo;
//         at the system call the stack pointer is 8 bytes above its start, as after the handler's `ret`.
//         struct _fpx_sw_bytes and FP_XSTATE_MAGIC2 (uapi/asm/sigcontext.h) mark the extended state.
// Rule    fpstate must lie on 64 bytes; rt_sigreturn sets orig_rax = -1 and forgets the restart block, so
//         an interrupted call is rewound here.
#include <cstddef>
#include <cstring>

#include "engine/arch/arch.h"

namespace stasis::engine::arch {
namespace {

struct Frame {
  std::uint64_t return_address;
  std::uint64_t flags;  // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
  std::uint64_t link;
  std::uint64_t stack_base;
  std::uint32_t stack_flags, padding;
  std::uint64_t stack_size;
  std::uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
  std::uint64_t rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
  std::uint16_t cs, gs, fs, ss;
  std::uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
  std::uint64_t mask;
};
static_assert(offsetof(Frame, r8) == 8 + 40);
static_assert(offsetof(Frame, mask) == 8 + 40 + 256);

constexpr std::uint64_t kFpXstate = 1, kSigcontextSs = 2, kStrictRestoreSs = 4;
constexpr std::uint32_t kMagic1 = 0x46505853, kMagic2 = 0x46505845;
constexpr std::size_t kSoftwareBytesOffset = 464;
constexpr std::uint64_t kRoomForSiginfo = 128;
constexpr std::size_t kFpstateOffset = (sizeof(Frame) + kRoomForSiginfo + 63) & ~std::size_t{63};

// struct _fpx_sw_bytes
struct SoftwareBytes {
  std::uint32_t magic1, extended_size;
  std::uint64_t features;
  std::uint32_t state_size, padding[7];
};
static_assert(sizeof(SoftwareBytes) == 48);

}  // namespace

std::vector<std::byte> SignalFrame(const Registers& registers, std::uint64_t signal_mask,
                                   std::uint64_t address) {
  const GeneralRegisters r = AsRestarted(registers.general);
  Frame frame = {};
  frame.flags = kFpXstate | kSigcontextSs | kStrictRestoreSs;
  // rt_sigreturn passes this to sigaltstack; SS_DISABLE with the flags it refuses (EINVAL, ignored by
  // the kernel: restore_altstack) would clear the thread's own. An invalid flag leaves it as it is.
  frame.stack_flags = 0x7fffffff;
  frame.r8 = r.r8, frame.r9 = r.r9, frame.r10 = r.r10, frame.r11 = r.r11;
  frame.r12 = r.r12, frame.r13 = r.r13, frame.r14 = r.r14, frame.r15 = r.r15;
  frame.rdi = r.rdi, frame.rsi = r.rsi, frame.rbp = r.rbp, frame.rbx = r.rbx;
  frame.rdx = r.rdx, frame.rax = r.rax, frame.rcx = r.rcx, frame.rsp = r.rsp;
  frame.rip = r.rip, frame.eflags = r.eflags;
  frame.cs = static_cast<std::uint16_t>(r.cs), frame.ss = static_cast<std::uint16_t>(r.ss);
  frame.fpstate = address + kFpstateOffset;
  frame.mask = signal_mask;

  const std::vector<std::byte> state = registers.extended.Unpack();
  const std::size_t state_size = state.size();
  std::vector<std::byte> bytes(kFpstateOffset + state_size + sizeof(kMagic2));
  std::memcpy(bytes.data(), &frame, sizeof(frame));
  std::memcpy(bytes.data() + kFpstateOffset, state.data(), state_size);
  SoftwareBytes software = {};
  software.magic1 = kMagic1;
  software.extended_size = static_cast<std::uint32_t>(state_size + sizeof(kMagic2));
  // The regset keeps the processor's user features in this very place (xstateregs_get).
  std::memcpy(&software.features, state.data() + kSoftwareBytesOffset, sizeof(software.features));
  software.state_size = static_cast<std::uint32_t>(state_size);
  std::memcpy(bytes.data() + kFpstateOffset + kSoftwareBytesOffset, &software, sizeof(software));
  std::memcpy(bytes.data() + kFpstateOffset + state_size, &kMagic2, sizeof(kMagic2));
  return bytes;
}

std::uint64_t FrameStackOffset() { return offsetof(Frame, flags); }

bool HasFrameFrom(std::span<const std::byte> stack, std::uint64_t begin, std::uint64_t end) {
  struct Where {
    std::uint64_t rip, eflags;
    std::uint16_t cs, gs, fs, ss;
  } where;
  static_assert(sizeof(Where) == offsetof(Frame, err) - offsetof(Frame, rip));
  constexpr std::uint16_t kUserCode = 0x33;
  constexpr std::uint64_t kAlwaysSet = 2, kFlags = (std::uint64_t{1} << 22) - 1;  // of eflags
  for (std::size_t at = 0; at + sizeof(where) <= stack.size(); at += sizeof(std::uint64_t)) {
    std::memcpy(&where, stack.data() + at, sizeof(where));
    if (where.rip < begin || where.rip >= end || where.cs != kUserCode) continue;
    if ((where.eflags & kAlwaysSet) != 0 && (where.eflags & ~kFlags) == 0) return true;
  }
  return false;
}

}  // namespace stasis::engine::arch
