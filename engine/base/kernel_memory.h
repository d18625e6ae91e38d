// Memory of the kernel that runs, read and never written: by a BPF program of ours, which it has checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/kernel_btf.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis {

using KernelAddress = std::uint64_t;

/// For one thread at a time.
class KernelMemory {
 public:
  /// FailedPrecondition: this kernel lacks what it takes. PermissionDenied: we lack CAP_BPF or CAP_PERFMON, or the
  /// kernel is locked down.
  static Result<KernelMemory> Open();

  KernelMemory(KernelMemory&& other) noexcept;
  KernelMemory& operator=(KernelMemory&&) = delete;
  ~KernelMemory();

  const KernelBtf& btf() const { return *btf_; }
  /// Gives back the 8 MB of it. From then on only fields that were asked for before are known.
  void ForgetDescription() { btf_.reset(); }

  /// Fills `bytes` with what lies at `address`. NotFound: nothing is there.
  Status Read(KernelAddress address, std::span<std::byte> bytes);
  template <typename T>
  Result<T> Value(KernelAddress address) {
    T value = {};
    RETURN_IF_ERROR(Read(address, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }

  /// The number in field `path` of the `structure` at `address`: of 1 to 8 bytes, or of some bits, without a sign.
  Result<std::uint64_t> Number(KernelAddress address, std::string_view structure,
                               std::string_view path);
  /// Where that field lies.
  Result<KernelAddress> AddressOf(KernelAddress address, std::string_view structure,
                                  std::string_view path);
  bool Has(std::string_view structure, std::string_view path);

  /// The open file description (struct file) behind our descriptor `fd`.
  Result<KernelAddress> FileOf(int fd);
  /// The task that calls.
  Result<KernelAddress> Current();
  /// The sum of a struct percpu_counter over all processors.
  Result<std::int64_t> SumOf(KernelAddress percpu_counter);

 private:
  explicit KernelMemory(std::shared_ptr<const KernelBtf> btf) : btf_(std::move(btf)) {}
  Status Load();
  Result<KernelBtf::Field> Field(std::string_view structure, std::string_view path);
  Result<KernelAddress> OffsetOf(std::uint32_t processor);

  std::shared_ptr<const KernelBtf> btf_;
  std::map<std::string, KernelBtf::Field, std::less<>> fields_;
  UniqueFd window_map_, processor_map_, reader_, processor_finder_;
  void* window_ = nullptr;                          // what the program copies to
  std::map<std::uint32_t, std::uint64_t> offsets_;  // of each processor's variables
};

}  // namespace stasis
