// The kubelet's folder of checkpoint archives. Names come from clients, and what is inside from containers.
#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "archive/archive.h"
#include "cri/container_facts.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::kubelet_api {

struct StoredCheckpoint {
  std::string name;
  cri::PodContainer of;  ///< As the archive says: the name can be read in several ways.
  std::uint64_t size = 0;
  std::string made;  ///< RFC 3339.
  std::string tag;   ///< Another one when the file was replaced or changed; for HTTP's ETag.
  UniqueFd file;
};

class CheckpointFolder {
 public:
  explicit CheckpointFolder(std::string path) : path_(std::move(path)) {}

  /// checkpoint-POD_NAMESPACE-CONTAINER-TIME.tar, as the kubelet names them, in one part.
  static bool IsName(std::string_view name);

  /// The path for a checkpoint that is made now; the folder is made when missing.
  Result<std::string> NewPath(const cri::PodContainer& of) const;

  /// All of them, or those of a namespace, by name. What is no archive is left out. Cancelled: `stop` came first.
  Result<std::vector<StoredCheckpoint>> List(const std::string* pod_namespace,
                                             const std::stop_token& stop = {}) const;
  /// NotFound: none of this name, or none of this namespace.
  Result<StoredCheckpoint> Find(const std::string& pod_namespace, const std::string& name) const;
  Result<std::unique_ptr<archive::Archive>> Open(const StoredCheckpoint& checkpoint) const;
  Status Delete(const StoredCheckpoint& checkpoint) const;

 private:
  Result<UniqueFd> OpenFolder() const;

  const std::string path_;
};

}  // namespace stasis::kubelet_api
