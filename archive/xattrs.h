// Extended attributes of files, xattr(7).
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/base/user_ids.h"

namespace stasis::archive {

using Xattrs = std::map<std::string, std::string>;

/// Those of the file behind `path_fd`, which may be O_PATH but not of a symbolic link: a link's own cannot be reached
/// through /proc, and user.* cannot be on one.
Result<Xattrs> ReadXattrs(int path_fd);

/// The users and groups in `xattrs`, which we have read, as the user namespace of `ids` has them. What would give a right
/// that nobody of it could give goes: a capability that counts outside.
void ShowXattrsInside(const UserIds& ids, Xattrs& xattrs);

/// The value of attribute `name` that we have to set for a file of that namespace to have `value`. FailedPrecondition: it
/// has no such id; InvalidArgument: a value of another form.
Result<std::string> XattrOutside(const UserIds& ids, std::string_view name, std::string value);

}  // namespace stasis::archive
