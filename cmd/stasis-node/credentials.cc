#include "cmd/stasis-node/credentials.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdlib>

#include "engine/base/io.h"

namespace {

using stasis::Result;
using stasis::node::Content;
using stasis::node::NodeFiles;

struct Credential {
  const char* name;
  const char* place;
  const char* option;
};

constexpr Credential kCredentials[] = {
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
std::string ApiServer() {
  const char* host = std::getenv("KUBERNETES_SERVICE_HOST");
  const char* port = std::getenv("KUBERNETES_SERVICE_PORT");
  if (host == nullptr || port == nullptr) return "";
  const std::string name = host;
  const bool ipv6 = name.find(':') != std::string::npos;
  return Option("api-server", "https://" + (ipv6 ? "[" + name + "]" : name) + ":" + port);
}

}  // namespace

Result<std::string> HandOver(const NodeFiles& files, const std::string& folder) {
  std::string options = ApiServer();
  for (const Credential& credential : kCredentials) {
    auto bytes = stasis::ReadFileAt(AT_FDCWD, folder + "/" + credential.name);
    if (stasis::ErrnoOf(bytes.status()) == ENOENT) continue;
    if (!bytes.ok()) return bytes.status();
    options += Option(credential.option, credential.place);
    const Content wanted{.bytes = *std::move(bytes), .mode = 0600};
    ASSIGN_OR_RETURN(const auto now, files.Read(credential.place));
    if (now && now->SameAs(wanted)) continue;
    RETURN_IF_ERROR(files.MakeFolders(credential.place));
    RETURN_IF_ERROR(files.Put(credential.place, wanted));
  }
  // Where the pod is to tell what its node can do, it is told the node's name.
  const char* const node = std::getenv("NODE_NAME");
  if (node != nullptr && *node != '\0') options += Option("node-name", node);
  return options;
}
