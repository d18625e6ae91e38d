// Source  vdso(7), syscall(2), Intel SDM volume 2 (JMP, MOV, SYSCALL); arch/x86/entry/vdso/vdso.lds.S for the names
// Rule    A function of the vDSO takes its arguments as the system call of its name does, but for the fourth and
//         later ones, which only getrandom has and its system call has not, and returns what that returns: an error
//         is its negative number.
// Rule    getrandom with a state's length of all ones asks how large its state is to be, which no system call tells.
// Rule    A function may begin with ENDBR64, which a jump to it passes over.
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>
#include <span>
#include <string_view>
#include <utility>

#include "engine/arch/arch.h"

namespace stasis::engine::arch {
namespace {

std::vector<std::byte> Code(std::string_view begin, const void* value, std::size_t size,
                            std::string_view end) {
  std::vector<std::byte> code;
  code.reserve(begin.size() + size + end.size());
  const std::string_view middle(static_cast<const char*>(value), size);
  for (const std::string_view part : {begin, middle, end}) {
    std::ranges::copy(std::as_bytes(std::span(part)), std::back_inserter(code));
  }
  return code;
}

constexpr auto kCalls = std::to_array<std::pair<std::string_view, std::int32_t>>(
    {{"__vdso_clock_gettime", SYS_clock_gettime},
     {"__vdso_gettimeofday", SYS_gettimeofday},
     {"__vdso_time", SYS_time},
     {"__vdso_getcpu", SYS_getcpu},
     {"__vdso_clock_getres", SYS_clock_getres}});

// mov number, %eax; syscall; ret
std::vector<std::byte> SystemCallCode(std::int32_t number) {
  return Code({"\xb8", 1}, &number, sizeof(number), {"\x0f\x05\xc3", 3});
}

// mov -ENOSYS, %rax; ret
std::vector<std::byte> NoSuchCallCode() {
  constexpr std::int32_t kError = -ENOSYS;
  return Code({"\x48\xc7\xc0", 3}, &kError, sizeof(kError), {"\xc3", 1});
}

}  // namespace

std::vector<std::byte> JumpTo(std::uint64_t address) {
  return Code({"\xff\x25\0\0\0\0", 6}, &address, sizeof(address), {});  // jmp *0(%rip)
}

std::vector<std::byte> InsteadOfVdso(std::string_view name) {
  // No process with an enclave is checkpointed.
  if (name == "__vdso_sgx_enter_enclave") return NoSuchCallCode();
  if (name == "__vdso_getrandom") {
    std::vector<std::byte> code = SystemCallCode(SYS_getrandom);
    const auto skipped = static_cast<std::uint8_t>(code.size());
    code = Code({"\x49\x83\xf8\xff\x74", 5}, &skipped, 1,  // cmp -1, %r8; je
                {reinterpret_cast<const char*>(code.data()), code.size()});
    std::ranges::copy(NoSuchCallCode(), std::back_inserter(code));
    return code;
  }
  for (const auto& [function, number] : kCalls) {
    if (function == name) return SystemCallCode(number);
  }
  return {};
}

}  // namespace stasis::engine::arch
