// Names of AF_UNIX sockets: a path, or an abstract one that begins with a NUL.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {

/// "@abstract" or the path, for messages.
std::string NameText(const std::string& name);

/// struct sockaddr_un of `name`, bytes as bind(2) had them. DataLoss for one that is too long.
Result<std::vector<std::byte>> AddressOf(const std::string& name);

/// Binds our `fd` to exactly `name`. A path is made where nobody sees it, in a file system of its own that
/// goes with the socket, and removed there at once: what has the path meanwhile stays.
Status BindUnseen(int fd, const std::string& name);

/// Where a bound socket can be reached, whatever became of its path.
struct Reach {
  UniqueFd file;  ///< Keeps the address valid.
  std::vector<std::byte> address;
};
/// For our `fd`, a socket that was bound to `name`.
Result<Reach> ReachOf(int fd, const std::string& name);

/// O_PATH of the file that the socket `fd` is bound to.
Result<UniqueFd> BoundFile(int fd);

}  // namespace stasis::engine
