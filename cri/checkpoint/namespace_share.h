// What the archives of one namespace may take of the disk that they have in common with those of all others.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "engine/base/status.h"

namespace stasis::cri {

class NamespaceShare {
 public:
  /// A checkpoint that is being written.
  class Part {
   public:
    ~Part();
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    /// So many bytes of the disk it has by now. ResourceExhausted, with EDQUOT: the share is taken.
    Status Takes(std::uint64_t bytes);
    /// The archive is there, of this size.
    void Done(std::uint64_t archive_bytes) { archive_bytes_ = archive_bytes; }

   private:
    friend class NamespaceShare;
    Part(NamespaceShare& share, std::string folder, std::string pod_namespace, std::uint64_t most)
        : share_(share), of_(std::move(folder), std::move(pod_namespace)), most_(most) {}

    NamespaceShare& share_;
    const std::pair<std::string, std::string> of_;
    const std::uint64_t most_;
    std::uint64_t bytes_ = 0;
    std::uint64_t archive_bytes_ = 0;
  };

  /// 100 percent: there is no limit but the disk.
  explicit NamespaceShare(int most_percent) : most_percent_(most_percent) {}

  /// A checkpoint of a container of `pod_namespace` begins, for an archive in `folder`; those that are there count.
  /// Null: without a limit. ResourceExhausted, with EDQUOT: the share is taken.
  Result<std::unique_ptr<Part>> Begin(const std::string& folder, const std::string& pod_namespace);

 private:
  struct Use {
    std::uint64_t stored = 0;   // as it was counted last, and since
    std::uint64_t pending = 0;  // of those under way
    std::uint64_t done = 0;     // how many ended with an archive
    int parts = 0;
  };

  const int most_percent_;
  std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, Use>
      uses_;  // by folder and namespace, of those under way
};

}  // namespace stasis::cri
