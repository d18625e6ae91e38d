// Seccomp filters of the tree: seccomp.img.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/image/image_io.h"
#include "engine/tasks/dumped_process.h"

namespace stasis::engine {

class SeccompDumper {
 public:
  /// Reads the filters of every thread of `process` into its cores, and lifts them until we let go.
  Status Add(DumpedProcess& process);
  /// seccomp.img, when there is a filter.
  Status WriteImage(ImageSink& sink) const;

 private:
  struct Filter {
    std::string program;  // struct sock_filter array
    std::uint32_t flags = 0;
    auto operator<=>(const Filter&) const = default;
  };
  using Chain = std::vector<Filter>;  // oldest first

  static Result<Chain> ReadChain(const FrozenThread& thread);
  std::uint32_t OldestOf(const Chain& chain);

  std::map<Chain, std::uint32_t> known_;  // chain to the index of its oldest filter
  image::SeccompEntry entry_;
};

}  // namespace stasis::engine
