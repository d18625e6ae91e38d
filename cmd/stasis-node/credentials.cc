#include "cmd/stasis-node/credentials.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdlib>
#include <set>
#include <utility>

#include "engine/base/io.h"

namespace {

using stasis::Result;
using stasis::node::Content;

struct Known {
  const char* name;
  const char* place;
  const char* option;
};

constexpr Known kCredentials[] = {
    {"token", "/run/stasis/credentials/token", "api-server-token-file"},
    {"ca.crt", "/etc/stasis/tls/api-server-ca.crt", "api-server-ca"},
    {"tls.crt", "/etc/stasis/tls/tls.crt", "api-tls-cert"},
    {"tls.key", "/etc/stasis/tls/tls.key", "api-tls-key"},
    {"client-ca.crt", "/etc/stasis/tls/client-ca.crt", "api-client-ca"},
};

std::string Option(const std::string& name, const std::string& value) {
  return name + " = \"" + value + "\"\n";
}

// Where pods find the API server; its address is as good on their node.
std::string ApiServerOfPods() {
  const char* host = std::getenv("KUBERNETES_SERVICE_HOST");
  const char* port = std::getenv("KUBERNETES_SERVICE_PORT");
  if (host == nullptr || port == nullptr) return "";
  const std::string name = host;
  const bool ipv6 = name.find(':') != std::string::npos;
  return "https://" + (ipv6 ? "[" + name + "]" : name) + ":" + port;
}

// One without the other is no smaller right but another: with a client authority and no API server, every
// certificate of the group system:masters rules.
stasis::Status CheckWhole(const std::set<std::string>& names, const std::string& folder) {
  constexpr std::pair<const char*, const char*> kNeeds[] = {{"token", "ca.crt"},
                                                            {"ca.crt", "token"},
                                                            {"tls.crt", "tls.key"},
                                                            {"tls.key", "tls.crt"},
                                                            {"client-ca.crt", "tls.crt"}};
  for (const auto& [name, needed] : kNeeds) {
    if (!names.contains(name) || names.contains(needed)) continue;
    return stasis::FailedPrecondition(folder + " has " + name + " and no " + needed +
                                      "; put that there, too");
  }
  if (!names.empty()) return stasis::OkStatus();
  return stasis::FailedPrecondition(folder + " has no token, ca.crt, tls.crt or tls.key");
}

}  // namespace

Result<HandedOver> ReadCredentials(const std::string& folder, const std::string& api_server) {
  HandedOver handed;
  std::set<std::string> names;
  for (const Known& known : kCredentials) {
    auto bytes = stasis::ReadFileAt(AT_FDCWD, folder + "/" + known.name);
    handed.files.push_back({.path = known.place, .content = {}});
    if (stasis::ErrnoOf(bytes.status()) == ENOENT) continue;
    if (!bytes.ok()) return bytes.status();
    names.insert(known.name);
    handed.options += Option(known.option, known.place);
    handed.files.back().content = Content{.bytes = *std::move(bytes), .mode = 0600};
  }
  RETURN_IF_ERROR(CheckWhole(names, folder));
  if (!names.contains("token")) return handed;
  const std::string server = api_server.empty() ? ApiServerOfPods() : api_server;
  if (server.empty()) {
    return stasis::FailedPrecondition(
        "nothing tells where the API server is that the token is for: KUBERNETES_SERVICE_HOST and "
        "KUBERNETES_SERVICE_PORT are not set; name it with --api-server");
  }
  handed.options += Option("api-server", server);
  // Where the pod is to tell what its node can do, it is told the node's name.
  const char* const node = std::getenv("NODE_NAME");
  if (node != nullptr && *node != '\0') handed.options += Option("node-name", node);
  return handed;
}
