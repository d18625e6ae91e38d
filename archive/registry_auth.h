// Credentials for a registry, and the tokens that it may want instead.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "archive/image_reference.h"
#include "engine/base/status.h"

namespace stasis::archive {

struct Credentials {
  std::string user;
  std::string password;
};

/// What the auth file (`auths` of docker's config.json or containers' auth.json) holds for `reference`, the
/// longest matching key first. Unset: nothing. Without `path`, $REGISTRY_AUTH_FILE and then
/// ~/.docker/config.json are read where they exist. InvalidArgument: the file is malformed.
Result<std::optional<Credentials>> FindCredentials(const std::string& path,
                                                   const ImageReference& reference);

/// "Basic dXNlcjpwYXNz" (RFC 7617).
std::string BasicAuthorization(const Credentials& credentials);

/// A WWW-Authenticate challenge: scheme in small letters and parameters (RFC 9110, section 11.6.1).
struct Challenge {
  std::string scheme;
  std::map<std::string, std::string> parameters;
};
Challenge ParseChallenge(std::string_view header);

}  // namespace stasis::archive
