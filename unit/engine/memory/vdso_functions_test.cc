#include "engine/memory/vdso_functions.h"

#include <elf.h>
#include <gtest/gtest.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using testing::IsOk;
using testing::StatusIs;

constexpr std::size_t kBytes = 8192;

// The vDSO of this process.
std::span<const std::byte> Ours() {
  return {reinterpret_cast<const std::byte*>(::getauxval(AT_SYSINFO_EHDR)), kBytes};
}

std::vector<std::byte> Copy() { return {Ours().begin(), Ours().end()}; }

// One that has each function under names that begin with `letter` instead.
std::vector<std::byte> Renamed(char letter) {
  std::vector<std::byte> vdso = Copy();
  const auto functions = VdsoFunctions(vdso);
  EXPECT_THAT(functions, IsOk());
  std::vector<std::string> names;
  for (const auto& [name, offset] : *functions) names.push_back(name);
  // A short name may be the end of a longer one.
  std::ranges::sort(names, std::ranges::greater(), &std::string::size);
  char* const begin = reinterpret_cast<char*>(vdso.data());
  char* const end = begin + vdso.size();
  for (const std::string& name : names) {
    const char* const text = name.c_str();
    for (char* at = begin; at != end;) {
      at = std::search(at, end, text, text + name.size() + 1);  // with its NUL
      if (at != end) *at++ = letter;
    }
  }
  return vdso;
}

// A copy in memory of its own that runs, whose functions lead to those of `live` at our vDSO's place.
class Redirected {
 public:
  explicit Redirected(const std::vector<std::byte>& live)
      : code_(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    std::memcpy(code_, Ours().data(), kBytes);
    EXPECT_THAT(
        RedirectVdso({static_cast<std::byte*>(code_), kBytes}, live, ::getauxval(AT_SYSINFO_EHDR)),
        IsOk());
    ::mprotect(code_, kBytes, PROT_READ | PROT_EXEC);
  }
  ~Redirected() { ::munmap(code_, kBytes); }

  template <typename Function>
  Function* At(const std::string& name) const {
    const auto functions = VdsoFunctions(Ours());
    EXPECT_TRUE(functions.ok() && functions->contains(name)) << name;
    return reinterpret_cast<Function*>(static_cast<char*>(code_) + functions->at(name));
  }

 private:
  void* code_;
};

void ExpectTheTime(const Redirected& vdso) {
  timespec before = {}, between = {}, after = {};
  ::clock_gettime(CLOCK_MONOTONIC, &before);
  EXPECT_EQ(vdso.At<long(int, timespec*)>("__vdso_clock_gettime")(CLOCK_MONOTONIC, &between), 0);
  ::clock_gettime(CLOCK_MONOTONIC, &after);
  const auto nanoseconds = [](const timespec& time) {
    return time.tv_sec * 1'000'000'000 + time.tv_nsec;
  };
  EXPECT_LE(nanoseconds(before), nanoseconds(between));
  EXPECT_LE(nanoseconds(between), nanoseconds(after));
  unsigned processor = ~0u;
  EXPECT_EQ(
      vdso.At<long(unsigned*, unsigned*, void*)>("__vdso_getcpu")(&processor, nullptr, nullptr), 0);
  EXPECT_NE(processor, ~0u);
}

TEST(VdsoFunctionsTest, LeadToThoseOfTheSameName) { ExpectTheTime(Redirected(Copy())); }

TEST(VdsoFunctionsTest, AreSystemCallsWhereTheKernelHasNone) {
  const Redirected vdso(Renamed('x'));
  ExpectTheTime(vdso);
  if (!VdsoFunctions(Ours())->contains("__vdso_getrandom")) return;
  auto* const random =
      vdso.At<long(void*, std::size_t, unsigned, void*, std::size_t)>("__vdso_getrandom");
  char bytes[8] = {};
  EXPECT_EQ(random(bytes, sizeof(bytes), 0, nullptr, 0), 8);
  EXPECT_EQ(random(nullptr, 0, 0, bytes, ~std::size_t{0}), -ENOSYS);
}

TEST(VdsoFunctionsTest, OneThatNobodyKnowsIsRefused) {
  std::vector<std::byte> theirs = Renamed('x');
  const std::vector<std::byte> ours = Renamed('y');
  EXPECT_THAT(RedirectVdso(theirs, ours, 0), StatusIs(StatusCode::kFailedPrecondition));
}

// Whatever an archive has in its place is read within its bounds.
TEST(VdsoFunctionsTest, NonsenseIsRefused) {
  EXPECT_THAT(VdsoFunctions({}).status(), StatusIs(StatusCode::kDataLoss));
  const std::vector<std::byte> whole = Copy();
  for (std::size_t size = 1; size < 4096; size += 61) {
    (void)VdsoFunctions(std::span(whole).first(size));
  }
  for (std::size_t at = 0; at < 2048; ++at) {
    std::vector<std::byte> spoilt = whole;
    for (const unsigned value : {0u, 0x7fu, 0xffu}) {
      spoilt[at] = static_cast<std::byte>(value);
      std::vector<std::byte> theirs = spoilt;
      (void)RedirectVdso(theirs, whole, 0);
    }
  }
}

}  // namespace
}  // namespace stasis::engine
