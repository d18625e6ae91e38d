// The runtime endpoint in the files that tell it to a kubelet: found and replaced in the text, so that
// everything around it stays as its owner wrote it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::node {

enum class Syntax {
  kFile,  ///< The whole file is ours.
  kFlag,  ///< --container-runtime-endpoint=VALUE in a line that is no comment.
  kYaml,  ///< containerRuntimeEndpoint: VALUE, as a top-level key.
};

/// The values of `flag` (with its dashes) in lines of `text` that are no comments.
std::vector<std::string> ValuesOf(const std::string& text, std::string_view flag);

/// The value in `text`; nothing when it is not set there, "" when it is set to that.
/// FailedPrecondition: it is there more than once. Unimplemented: JSON in place of YAML.
Result<std::optional<std::string>> EndpointIn(const std::string& text, Syntax syntax);

/// `text` with the endpoint `value`; without one, the line of the YAML key is taken out.
/// FailedPrecondition: a flag that is not there, as nobody knows to which line it belongs.
Result<std::string> WithEndpoint(const std::string& text, Syntax syntax,
                                 const std::optional<std::string>& value);

}  // namespace stasis::node
