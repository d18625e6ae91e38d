// How a node runs its kubelet: which file tells it the runtime's socket, which service it is part of.
#pragma once

#include <string>
#include <vector>

#include "deploy/node/endpoint_text.h"
#include "deploy/node/node_files.h"

namespace stasis::node {

inline constexpr const char* kStasisEndpoint = "unix:///run/stasis/stasis.sock";

/// A file that sends the kubelet to us.
struct Switch {
  std::string path;
  Syntax syntax = Syntax::kFile;
  std::string whole = {};  ///< The file for Syntax::kFile.
};

struct Kubelet {
  std::string distribution;           ///< kubelet, k3s, rke2, k0s, microk8s.
  std::string service = {};           ///< Without ".service".
  std::string runtime_endpoint = {};  ///< Of the runtime, as the kubelet would use it without us.
  Switch to_stasis = {};
};

/// What an administrator says in place of what would be found out.
struct Hints {
  std::string distribution;
  std::string runtime_endpoint;
  std::string kubelet_config = "/var/lib/kubelet/config.yaml";
};

/// FailedPrecondition, NotFound, Unimplemented: what stands in the way, and what to do about it.
Result<Kubelet> FindKubelet(const NodeFiles& files, const Hints& hints);

}  // namespace stasis::node
