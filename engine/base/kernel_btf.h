// Where the kernel that runs keeps the fields of its structures, as it tells itself (BTF).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"

namespace stasis {

class KernelBtf {
 public:
  /// Of the running kernel; 7 MB, which take some 20 ms to read and are kept as long as somebody has them.
  /// FailedPrecondition: it was built without CONFIG_DEBUG_INFO_BTF.
  static Result<std::shared_ptr<const KernelBtf>> Running();
  /// `bytes` as in /sys/kernel/btf/vmlinux. DataLoss: they are not.
  static Result<KernelBtf> Parse(std::string bytes);

  struct Field {
    std::uint32_t offset = 0;  ///< In bytes, from the start of the structure.
    std::uint32_t size = 0;    ///< In bytes; of a bit field, of the type that it is a part of.
    std::uint32_t shift = 0;  ///< A bit field: its lowest bit, counted from the one at `offset` ...
    std::uint32_t bits = 0;   ///< ... and how many it has; else 0.
  };
  /// Of `structure`: "flags", or "sq.head" for one of a structure in it, also in nameless ones. NotFound: this kernel
  /// has none of that name, or has several structures of that name which differ in it.
  Result<Field> Find(std::string_view structure, std::string_view path) const;
  /// What constant `name` of any enumeration of 32 bits stands for. NotFound: there is none.
  Result<std::uint32_t> Constant(std::string_view name) const;
  /// In bytes. NotFound as above.
  Result<std::uint32_t> SizeOf(std::string_view structure) const;

 private:
  explicit KernelBtf(std::string bytes) : bytes_(std::move(bytes)) {}
  Status ReadTypes(std::uint64_t begin, std::uint64_t end);
  std::uint32_t Word(std::uint64_t at) const;
  std::string_view Name(std::uint32_t offset) const;
  std::uint32_t Stripped(std::uint32_t type) const;
  Result<std::uint32_t> SizeOfType(std::uint32_t type) const;
  bool FindIn(std::uint32_t type, std::string_view path, std::uint32_t bit, int depth,
              Field& found) const;
  std::vector<std::uint32_t> Named(std::string_view structure) const;

  std::string bytes_;
  std::uint64_t strings_ = 0, strings_end_ = 0;
  std::vector<std::uint32_t> types_;  // where each begins, by its number; 0 is void
  std::vector<std::uint32_t> structures_, enumerations_;  // their numbers
};

}  // namespace stasis
