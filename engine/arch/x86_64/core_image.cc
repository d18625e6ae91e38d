// Registers in core-TID.img: thread_info_x86.
//
// Rule    XSAVE components lie where CPUID(0xD, component) says, and AMD and Intel differ (PKRU, AVX-512):
//         the image holds each component by itself. Intel SDM vol. 1, 13.4 to 13.5.
// Rule    XCOMP_BV and the reserved header bytes must be zero, and MXCSR within its mask, or the kernel
//         refuses the state (#GP at XRSTOR).
// Rule    CPUID leaves a virtual machine each time, for some 20 us: asked once a component, not once a thread.
#include <cpuid.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/arch/arch.h"

namespace stasis::engine::arch {
namespace {

constexpr std::size_t kHeaderOffset = 512;
constexpr std::size_t kHeaderBytes = 64;
constexpr std::size_t kSoftwareBytesOffset = 464;
constexpr std::size_t kX87Offset = 32, kX87Bytes = 128;
constexpr std::size_t kXmmOffset = 160, kXmmBytes = 256;
constexpr std::size_t kMxcsrOffset = 24, kMxcsrMaskOffset = 28;

struct Component {
  std::size_t offset = 0, size = 0;
};

using Components = std::array<Component, 10>;  // to PKRU, by number

Components AskProcessor() {
  Components components;
  for (unsigned number = 2; number < components.size(); ++number) {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(0xd, number, &eax, &ebx, &ecx, &edx)) components[number] = {ebx, eax};
  }
  return components;
}

// Where component `number` lies in the standard format; nothing when this processor has none.
std::optional<Component> Find(unsigned number, std::span<const std::byte> area) {
  static const Components kComponents = AskProcessor();
  const Component& component = kComponents.at(number);
  if (component.size == 0 || component.offset + component.size > area.size()) return std::nullopt;
  return component;
}

template <typename T>
T Load(std::span<const std::byte> area, std::size_t offset) {
  T value = {};
  std::memcpy(&value, area.data() + offset, sizeof(T));
  return value;
}

template <typename T>
void Store(std::span<std::byte> area, std::size_t offset, T value) {
  std::memcpy(area.data() + offset, &value, sizeof(T));
}

template <typename Field>
void ToWords(std::span<const std::byte> bytes, Field* field) {
  using Word = typename Field::value_type;
  field->Reserve(static_cast<int>(bytes.size() / sizeof(Word)));
  for (std::size_t i = 0; i + sizeof(Word) <= bytes.size(); i += sizeof(Word)) {
    field->AddAlreadyReserved(Load<Word>(bytes, i));
  }
}

template <typename Field>
Status FromWords(const Field& field, std::span<std::byte> bytes, const char* name) {
  using Word = typename Field::value_type;
  const std::size_t size = static_cast<std::size_t>(field.size()) * sizeof(Word);
  if (size > bytes.size()) {
    return InvalidArgument(std::string("core image: ") + name + " has too many words");
  }
  std::memcpy(bytes.data(), field.data(), size);
  return OkStatus();
}

void Append(std::span<const std::byte> some, std::vector<std::byte>& bytes) {
  bytes.insert(bytes.end(), some.begin(), some.end());
}

// Most of what the extended registers are to an image.
template <typename Step>
void EachWords(image::UserX86FpregsEntry& fp, const Step& step) {
  step(*fp.mutable_st_space());
  step(*fp.mutable_xmm_space());
  if (!fp.has_xsave()) return;
  image::UserX86XsaveEntry& xsave = *fp.mutable_xsave();
  step(*xsave.mutable_ymmh_space());
  step(*xsave.mutable_bndreg_state());
  step(*xsave.mutable_bndcsr_state());
  step(*xsave.mutable_opmask_reg());
  step(*xsave.mutable_zmm_upper());
  step(*xsave.mutable_hi16_zmm());
  step(*xsave.mutable_pkru());
}

constexpr std::uint64_t kX87AndSse = 3;
// Components that the image format can hold: x87, SSE, AVX, MPX (2), AVX-512 (3), PKRU.
constexpr std::uint64_t kImageFeatures = 0x2ff;

void GeneralToImage(const GeneralRegisters& r, image::UserX86RegsEntry& e) {
  e.set_r15(r.r15), e.set_r14(r.r14), e.set_r13(r.r13), e.set_r12(r.r12);
  e.set_bp(r.rbp), e.set_bx(r.rbx), e.set_r11(r.r11), e.set_r10(r.r10);
  e.set_r9(r.r9), e.set_r8(r.r8), e.set_ax(r.rax), e.set_cx(r.rcx);
  e.set_dx(r.rdx), e.set_si(r.rsi), e.set_di(r.rdi), e.set_orig_ax(r.orig_rax);
  e.set_ip(r.rip), e.set_cs(r.cs), e.set_flags(r.eflags), e.set_sp(r.rsp), e.set_ss(r.ss);
  e.set_fs_base(r.fs_base), e.set_gs_base(r.gs_base);
  e.set_ds(r.ds), e.set_es(r.es), e.set_fs(r.fs), e.set_gs(r.gs);
  e.set_mode(image::REGS_NATIVE);
}

GeneralRegisters GeneralFromImage(const image::UserX86RegsEntry& e) {
  GeneralRegisters r = {};
  r.r15 = e.r15(), r.r14 = e.r14(), r.r13 = e.r13(), r.r12 = e.r12();
  r.rbp = e.bp(), r.rbx = e.bx(), r.r11 = e.r11(), r.r10 = e.r10();
  r.r9 = e.r9(), r.r8 = e.r8(), r.rax = e.ax(), r.rcx = e.cx();
  r.rdx = e.dx(), r.rsi = e.si(), r.rdi = e.di();
  r.orig_rax = ~std::uint64_t{0};  // the call, if any, was rewound when the image was made
  r.rip = e.ip(), r.cs = e.cs(), r.eflags = e.flags(), r.rsp = e.sp(), r.ss = e.ss();
  r.fs_base = e.fs_base(), r.gs_base = e.gs_base();
  r.ds = e.ds(), r.es = e.es(), r.fs = e.fs(), r.gs = e.gs();
  return r;
}

}  // namespace

Status CheckForImage(const Registers& registers) {
  const std::vector<std::byte> area = registers.extended.Unpack();
  if (area.size() < kHeaderOffset + kHeaderBytes) {
    return Unimplemented("this processor has no XSAVE");
  }
  const auto features = Load<std::uint64_t>(area, kHeaderOffset);
  if (const std::uint64_t lost = features & ~kImageFeatures; lost != 0) {
    return Unimplemented(
        "registers in use that the image format has no place for (XSAVE components " +
        std::to_string(lost) + ")");
  }
  return OkStatus();
}

void ToImage(const Registers& registers, image::CoreEntry& core) {
  core.set_mtype(image::MARCH_X86_64);
  image::ThreadInfoX86& info = *core.mutable_thread_info();
  GeneralToImage(AsRestarted(registers.general), *info.mutable_gpregs());

  const std::vector<std::byte> bytes = registers.extended.Unpack();
  const std::span<const std::byte> area = bytes;
  image::UserX86FpregsEntry& fp = *info.mutable_fpregs();
  fp.set_cwd(Load<std::uint16_t>(area, 0));
  fp.set_swd(Load<std::uint16_t>(area, 2));
  fp.set_twd(Load<std::uint16_t>(area, 4));
  fp.set_fop(Load<std::uint16_t>(area, 6));
  fp.set_rip(Load<std::uint64_t>(area, 8));
  fp.set_rdp(Load<std::uint64_t>(area, 16));
  fp.set_mxcsr(Load<std::uint32_t>(area, kMxcsrOffset));
  fp.set_mxcsr_mask(Load<std::uint32_t>(area, kMxcsrMaskOffset));
  ToWords(area.subspan(kX87Offset, kX87Bytes), fp.mutable_st_space());
  ToWords(area.subspan(kXmmOffset, kXmmBytes), fp.mutable_xmm_space());

  image::UserX86XsaveEntry& xsave = *fp.mutable_xsave();
  xsave.set_xstate_bv(Load<std::uint64_t>(area, kHeaderOffset));
  const auto put = [&](unsigned component, auto* field) {
    if (const auto at = Find(component, area)) ToWords(area.subspan(at->offset, at->size), field);
  };
  put(2, xsave.mutable_ymmh_space());
  put(3, xsave.mutable_bndreg_state());
  put(4, xsave.mutable_bndcsr_state());
  put(5, xsave.mutable_opmask_reg());
  put(6, xsave.mutable_zmm_upper());
  put(7, xsave.mutable_hi16_zmm());
  put(9, xsave.mutable_pkru());
}

PackedBytes TakeExtended(image::CoreEntry& core) {
  if (!core.has_thread_info()) return {};
  const std::unique_ptr<image::UserX86FpregsEntry> fp(core.mutable_thread_info()->release_fpregs());
  if (fp == nullptr) return {};
  std::vector<std::byte> words, bytes;
  EachWords(*fp, [&words](auto& field) {
    const auto count = static_cast<std::uint64_t>(field.size());
    Append(std::as_bytes(std::span(&count, 1)), words);
    Append(std::as_bytes(std::span(field.data(), count)), words);
    field.Clear();
  });
  const std::string rest = fp->SerializePartialAsString();
  const auto rest_bytes = static_cast<std::uint64_t>(rest.size());
  Append(std::as_bytes(std::span(&rest_bytes, 1)), bytes);
  Append(std::as_bytes(std::span(rest)), bytes);
  Append(words, bytes);
  return PackedBytes(bytes);
}

void PutExtended(const PackedBytes& extended, image::CoreEntry& core) {
  if (extended.empty()) return;
  const std::vector<std::byte> bytes = extended.Unpack();
  std::span<const std::byte> left = bytes;
  const auto cut = [&left](std::uint64_t size) {
    const std::span<const std::byte> some = left.first(size);
    left = left.subspan(size);
    return some;
  };
  const auto cut_counted = [&cut](std::size_t of_each) {
    return cut(Load<std::uint64_t>(cut(sizeof(std::uint64_t)), 0) * of_each);
  };
  image::UserX86FpregsEntry& fp = *core.mutable_thread_info()->mutable_fpregs();
  const std::span<const std::byte> rest = cut_counted(1);
  fp.ParsePartialFromArray(rest.data(), static_cast<int>(rest.size()));
  EachWords(fp, [&cut_counted](auto& field) {
    using Field = std::remove_reference_t<decltype(field)>;
    ToWords(cut_counted(sizeof(typename Field::value_type)), &field);
  });
}

void SetClearTidAddress(std::uint64_t address, image::CoreEntry& core) {
  core.mutable_thread_info()->set_clear_tid_addr(address);
}

std::uint64_t InstructionPointerOf(const image::CoreEntry& core) {
  return core.thread_info().gpregs().ip();
}

std::uint64_t StackPointerOf(const image::CoreEntry& core) {
  return core.thread_info().gpregs().sp();
}

Result<Registers> FromImage(const image::CoreEntry& core, const Registers& model) {
  if (core.mtype() != image::MARCH_X86_64 || !core.has_thread_info()) {
    return FailedPrecondition("the checkpoint was made on another architecture than x86_64");
  }
  const image::UserX86RegsEntry& general = core.thread_info().gpregs();
  constexpr std::uint64_t kUserCs = 0x33;
  if (general.mode() != image::REGS_NATIVE || general.cs() != kUserCs) {
    return Unimplemented("core image: a 32-bit thread");
  }
  const image::UserX86FpregsEntry& fp = core.thread_info().fpregs();
  std::vector<std::byte> bytes = model.extended.Unpack();
  const std::span<std::byte> area = bytes;
  if (area.size() < kHeaderOffset + kHeaderBytes) {
    return FailedPrecondition("this processor has no XSAVE");
  }
  const auto mask = Load<std::uint32_t>(area, kMxcsrMaskOffset);
  const auto host_features = Load<std::uint64_t>(area, kSoftwareBytesOffset);
  std::fill(area.begin(), area.begin() + kSoftwareBytesOffset, std::byte{});
  std::fill(area.begin() + kHeaderOffset, area.end(), std::byte{});
  // Without an XSAVE entry the dumping processor had only x87 and SSE.
  const std::uint64_t features = fp.has_xsave() ? fp.xsave().xstate_bv() : kX87AndSse;
  if ((features & ~(host_features & kImageFeatures)) != 0) {
    return FailedPrecondition(
        "the checkpoint uses processor registers that this processor lacks (XSAVE components " +
        std::to_string(features & ~(host_features & kImageFeatures)) + ")");
  }

  Store(area, 0, static_cast<std::uint16_t>(fp.cwd()));
  Store(area, 2, static_cast<std::uint16_t>(fp.swd()));
  Store(area, 4, static_cast<std::uint16_t>(fp.twd()));
  Store(area, 6, static_cast<std::uint16_t>(fp.fop()));
  Store(area, 8, static_cast<std::uint64_t>(fp.rip()));
  Store(area, 16, static_cast<std::uint64_t>(fp.rdp()));
  Store(area, kMxcsrOffset, fp.mxcsr() & (mask != 0 ? mask : 0xffbf));
  Store(area, kMxcsrMaskOffset, mask);
  RETURN_IF_ERROR(FromWords(fp.st_space(), area.subspan(kX87Offset, kX87Bytes), "st_space"));
  RETURN_IF_ERROR(FromWords(fp.xmm_space(), area.subspan(kXmmOffset, kXmmBytes), "xmm_space"));

  Store(area, kHeaderOffset, features);
  const image::UserX86XsaveEntry& xsave = fp.xsave();
  const auto take = [&](unsigned component, const auto& field, const char* name) -> Status {
    if ((features >> component & 1) == 0) return OkStatus();  // in its initial state
    const auto at = Find(component, area);
    if (!at) return FailedPrecondition(std::string("this processor has no ") + name);
    return FromWords(field, area.subspan(at->offset, at->size), name);
  };
  RETURN_IF_ERROR(take(2, xsave.ymmh_space(), "AVX"));
  RETURN_IF_ERROR(take(3, xsave.bndreg_state(), "MPX bounds"));
  RETURN_IF_ERROR(take(4, xsave.bndcsr_state(), "MPX control"));
  RETURN_IF_ERROR(take(5, xsave.opmask_reg(), "AVX-512 masks"));
  RETURN_IF_ERROR(take(6, xsave.zmm_upper(), "AVX-512 upper halves"));
  RETURN_IF_ERROR(take(7, xsave.hi16_zmm(), "AVX-512 upper registers"));
  RETURN_IF_ERROR(take(9, xsave.pkru(), "PKRU"));
  return Registers{.general = GeneralFromImage(general), .extended = PackedBytes(bytes)};
}

SystemCall CallOf(const image::CoreEntry& core) {
  const image::UserX86RegsEntry& e = core.thread_info().gpregs();
  return {.number = static_cast<long>(e.orig_ax()),
          .arguments = {e.di(), e.si(), e.dx(), e.r10(), e.r8(), e.r9()},
          .result = 0};
}

void PutAtEnd(const SystemCall& call, GeneralRegisters& registers) {
  constexpr std::uint64_t kSyscallBytes = 2;
  const auto number = static_cast<std::uint64_t>(call.number);
  if (registers.rax == number) registers.rip += kSyscallBytes;  // it was to be issued again
  registers.rax = static_cast<std::uint64_t>(call.result);
  registers.orig_rax = number;
}

}  // namespace stasis::engine::arch
