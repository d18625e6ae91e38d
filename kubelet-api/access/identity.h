// Who sent a request, as the API server would call them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace stasis::kubelet_api {

struct Identity {
  std::string user;
  std::string uid;
  std::vector<std::string> groups;
  nlohmann::json extra = nlohmann::json::object();
};

/// What somebody wants to do: with checkpoints in a namespace ("" is all of them), or with a path of ours.
struct Wish {
  std::string verb;  ///< "create", "get", "list", "delete".
  std::string pod_namespace;
  std::string name;  ///< Of the pod or archive; empty for lists.
  std::string path;  ///< Instead of the two: "/metrics".
};

}  // namespace stasis::kubelet_api
