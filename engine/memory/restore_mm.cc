// Source  prctl(2) PR_SET_MM_MAP; validate_prctl_map_addr() in kernel/sys.c; tested on 6.18
// Rule    Every address lies in [mmap_min_addr, TASK_SIZE), code is not empty, and no end is below its
//         start. Areas need not exist there.
// Rule    With exe_fd -1 no capability is needed. /proc/PID/exe is right already: the program was
//         executed.
#include "engine/memory/restore_mm.h"

#include <linux/prctl.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "engine/memory/restore_layout.h"

#ifndef PR_GET_AUXV
#define PR_GET_AUXV 0x41555856  // Linux 6.4
#endif

namespace stasis::engine {
namespace {

// No kernel has more, and an image that has is broken.
constexpr int kMostAuxvWords = 256;
// What x86_64 kernels before PR_GET_AUXV take at least.
constexpr std::size_t kOldAuxvWords = 44;
// The kernel's lowest address is the larger of sysctl vm.mmap_min_addr and CONFIG_LSM_MMAP_MIN_ADDR, which
// is built in and at most this (security/min_addr.c, security/Kconfig).
constexpr std::uint64_t kHighestLsmMinimum = 65536;

// Words that PR_SET_MM_MAP takes: those of the kernel's own copy, which PR_GET_AUXV gives whole.
std::size_t AuxvRoom() {
  std::array<std::uint64_t, kMostAuxvWords> own;
  const int size = ::prctl(PR_GET_AUXV, own.data(), sizeof(own), 0, 0);
  return size > 0 ? static_cast<std::size_t>(size) / sizeof(std::uint64_t) : kOldAuxvWords;
}

Result<std::vector<std::uint64_t>> ReadAuxv(const image::MmEntry& mm) {
  if (mm.mm_saved_auxv_size() > kMostAuxvWords || mm.mm_saved_auxv_size() % 2 != 0) {
    return InvalidArgument("an auxiliary vector of " + std::to_string(mm.mm_saved_auxv_size()) +
                           " words");
  }
  std::vector<std::uint64_t> auxv;
  for (int i = 0; i < mm.mm_saved_auxv_size() && mm.mm_saved_auxv(i) != AT_NULL; i += 2) {
    auxv.push_back(mm.mm_saved_auxv(i));
    auxv.push_back(mm.mm_saved_auxv(i + 1));
  }
  // The program itself reads the copy on its stack; this one is for /proc/PID/auxv.
  auxv.resize(std::min(auxv.size(), AuxvRoom() - 2));
  auxv.insert(auxv.end(), {AT_NULL, 0});
  return auxv;
}

Status CheckPair(const char* what, std::uint64_t start, std::uint64_t end) {
  if (start > end || end >= kTaskSize) {
    return InvalidArgument(std::string("impossible addresses of its ") + what + ": " +
                           ToText(AddressRange{start, end}));
  }
  return OkStatus();
}

}  // namespace

Result<MmAddresses> ReadMmAddresses(const image::MmEntry& mm) {
  ASSIGN_OR_RETURN(const std::uint64_t minimum, VmSysctl("mmap_min_addr"));
  const std::uint64_t lowest = std::max(minimum, kHighestLsmMinimum);
  // A static program without data has zeros where the kernel wants an address.
  const auto clamp = [lowest](std::uint64_t address) { return std::max(address, lowest); };
  MmAddresses to = {.start_code = clamp(mm.mm_start_code()),
                    .end_code = clamp(mm.mm_end_code()),
                    .start_data = clamp(mm.mm_start_data()),
                    .end_data = clamp(mm.mm_end_data()),
                    .start_brk = clamp(mm.mm_start_brk()),
                    .brk = clamp(mm.mm_brk()),
                    .start_stack = clamp(mm.mm_start_stack()),
                    .arg_start = clamp(mm.mm_arg_start()),
                    .arg_end = clamp(mm.mm_arg_end()),
                    .env_start = clamp(mm.mm_env_start()),
                    .env_end = clamp(mm.mm_env_end()),
                    .auxv = {}};
  RETURN_IF_ERROR(CheckPair("code", to.start_code + 1, to.end_code));
  RETURN_IF_ERROR(CheckPair("data", to.start_data, to.end_data));
  RETURN_IF_ERROR(CheckPair("heap", to.start_brk, to.brk));
  RETURN_IF_ERROR(CheckPair("stack", to.start_stack, to.start_stack));
  RETURN_IF_ERROR(CheckPair("arguments", to.arg_start, to.arg_end));
  RETURN_IF_ERROR(CheckPair("environment", to.env_start, to.env_end));
  ASSIGN_OR_RETURN(to.auxv, ReadAuxv(mm));
  return to;
}

Status SetMmAddresses(RemoteSyscalls& remote, const MmAddresses& addresses) {
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t auxv, remote.Put(std::as_bytes(std::span(addresses.auxv))));
  const prctl_mm_map map = {
      .start_code = addresses.start_code,
      .end_code = addresses.end_code,
      .start_data = addresses.start_data,
      .end_data = addresses.end_data,
      .start_brk = addresses.start_brk,
      .brk = addresses.brk,
      .start_stack = addresses.start_stack,
      .arg_start = addresses.arg_start,
      .arg_end = addresses.arg_end,
      .env_start = addresses.env_start,
      .env_end = addresses.env_end,
      .auxv = reinterpret_cast<__u64*>(auxv),
      .auxv_size = static_cast<__u32>(addresses.auxv.size() * sizeof(std::uint64_t)),
      .exe_fd = ~__u32{0},
  };
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(map));
  const Status status =
      remote.Call("prctl PR_SET_MM_MAP", SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, at, sizeof(map), 0)
          .status();
  remote.ResetArguments();
  return status;
}

}  // namespace stasis::engine
