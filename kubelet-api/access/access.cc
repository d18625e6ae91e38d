#include "kubelet-api/access/access.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>

#include <algorithm>
#include <cerrno>
#include <span>

#include "archive/json_fields.h"
#include "archive/sha256.h"

namespace stasis::kubelet_api {
namespace {

Status Unauthenticated(std::string_view message) {
  return MakeStatus(StatusCode::kUnauthenticated, message);
}

// Who may do everything where there is no API server to ask. A certificate of the authority alone is not enough:
// a cluster's signs those of every node too.
bool IsAdministrator(const Identity& identity) {
  return std::ranges::any_of(identity.groups, [](const std::string& group) {
    return group == "system:masters" || group == "stasis:admins";
  });
}

std::string Text(const Wish& wish) {
  if (!wish.path.empty()) return wish.verb + " " + wish.path;
  return wish.verb + " checkpoints.stasis.dev" + (wish.name.empty() ? "" : " of " + wish.name) +
         (wish.pod_namespace.empty() ? " in all namespaces"
                                     : " in namespace " + wish.pod_namespace);
}

}  // namespace

Result<Identity> Access::Authenticate(const Credentials& credentials, const std::stop_token& stop) {
  if (!has_api_server_ && !takes_certificates_) {
    return PermissionDenied(
        "stasisd has neither an API server (--api-server) nor an authority for client certificates "
        "(--api-client-ca) to know anybody by");
  }
  if (credentials.certificate) {
    Identity identity = {.user = credentials.certificate->user,
                         .uid = {},
                         .groups = credentials.certificate->groups};
    identity.groups.emplace_back("system:authenticated");
    return identity;
  }
  constexpr std::size_t kSchemeSize = 7;
  const std::string& header = credentials.authorization;
  if (!absl::StartsWithIgnoreCase(header, "bearer ") || !has_api_server_) {
    return Unauthenticated(has_api_server_ ? "send a bearer token or a client certificate"
                                           : "send a client certificate");
  }
  std::string token = header.substr(kSchemeSize);
  absl::StripAsciiWhitespace(&token);
  if (token.empty()) return Unauthenticated("the bearer token is empty");
  ASSIGN_OR_RETURN(const std::optional<Identity> identity,
                   WhoHas(token, credentials.network, stop));
  if (!identity) return Unauthenticated("the API server does not know this bearer token");
  return *identity;
}

Status Access::Authorize(const Identity& identity, const Wish& wish, const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const bool allowed, Allows(identity, wish, stop));
  return allowed ? OkStatus()
                 : PermissionDenied("user " + identity.user + " may not " + Text(wish));
}

Result<std::optional<Identity>> Access::WhoHas(const std::string& token, const std::string& network,
                                               const std::stop_token& stop) {
  archive::Sha256 hash;
  hash.Update(std::as_bytes(std::span(token)));
  const std::string digest = hash.Finish();
  if (auto known = tokens_.Find(digest)) return known;
  if (nobodys_tokens_.Find(digest)) return std::optional<Identity>();
  const auto turn = strangers_.Take(network);
  if (!turn) return SyscallError(EAGAIN, "too many tokens are being asked about");
  ASSIGN_OR_RETURN(std::optional<Identity> identity, api_server_.WhoHas(token, stop));
  if (identity) {
    tokens_.Put(digest, *identity);
  } else {
    nobodys_tokens_.Put(digest, true);
  }
  return identity;
}

Result<bool> Access::Allows(const Identity& identity, const Wish& wish,
                            const std::stop_token& stop) {
  if (!has_api_server_) return IsAdministrator(identity);
  const std::string key =
      archive::Dump({identity.user, identity.uid, identity.groups, identity.extra, wish.verb,
                     wish.pod_namespace, wish.name, wish.path});
  if (rights_.Find(key)) return true;
  if (refusals_.Find(key)) return false;
  ASSIGN_OR_RETURN(const bool allowed, api_server_.Allows(identity, wish, stop));
  (allowed ? rights_ : refusals_).Put(key, true);
  return allowed;
}

}  // namespace stasis::kubelet_api
