// Source  xattr(7), acl(5), capabilities(7) "Namespaced file capabilities"; include/uapi/linux/posix_acl_xattr.h and
//         capability.h, cap_convert_nscap() in security/commoncap.c; tested on 6.18
// Rule    The kernel shows and takes the ids in ACLs and capabilities as the caller's user namespace has them. A
//         capability of version 2 is for programs of that namespace; one of version 3 for those of the namespace in which
//         its id is the root.
#include "archive/xattrs.h"

#include <sys/xattr.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <iterator>

namespace stasis::archive {
namespace {

constexpr std::string_view kAcl = "system.posix_acl_", kCapability = "security.capability";

struct Acl {
  std::uint16_t tag, permissions;
  std::uint32_t id;
};
static_assert(sizeof(Acl) == 8);
constexpr std::size_t kAclHeadBytes = 4;
constexpr std::uint16_t kAclUser = 2, kAclGroup = 8;

constexpr std::size_t kVersion2Bytes = 20, kVersion3Bytes = 24;
constexpr std::uint32_t kVersionMask = 0xff000000, kVersion2 = 0x02000000, kVersion3 = 0x03000000;

std::uint32_t WordAt(const std::string& bytes, std::size_t at) {
  std::uint32_t word = 0;
  std::memcpy(&word, bytes.data() + at, sizeof(word));
  return word;
}
void SetWord(std::string& bytes, std::size_t at, std::uint32_t word) {
  std::memcpy(bytes.data() + at, &word, sizeof(word));
}
std::uint32_t WithVersion(const std::string& capability, std::uint32_t version) {
  return (WordAt(capability, 0) & ~kVersionMask) | version;
}

// Calls `change` for each id in an ACL.
template <typename Change>
Status ChangeAcl(std::string& bytes, Change change) {
  if (bytes.size() < kAclHeadBytes || (bytes.size() - kAclHeadBytes) % sizeof(Acl) != 0) {
    return InvalidArgument("an access control list of another form");
  }
  for (std::size_t at = kAclHeadBytes; at < bytes.size(); at += sizeof(Acl)) {
    Acl entry = {};
    std::memcpy(&entry, bytes.data() + at, sizeof(entry));
    if (entry.tag != kAclUser && entry.tag != kAclGroup) continue;
    RETURN_IF_ERROR(change(entry.tag == kAclUser, entry.id));
    std::memcpy(bytes.data() + at, &entry, sizeof(entry));
  }
  return OkStatus();
}

// False for what counts outside alone.
bool ShowCapabilityInside(const UserIds& ids, std::string& bytes) {
  if (bytes.size() != kVersion3Bytes) return false;
  const std::uint32_t root = ids.users.ToInside(WordAt(bytes, kVersion2Bytes));
  if (root != 0) {
    SetWord(bytes, kVersion2Bytes, root);
    return true;
  }
  SetWord(bytes, 0, WithVersion(bytes, kVersion2));
  bytes.resize(kVersion2Bytes);
  return true;
}

Result<std::string> CapabilityOutside(const UserIds& ids, std::string bytes) {
  if (bytes.size() != kVersion2Bytes && bytes.size() != kVersion3Bytes) {
    return InvalidArgument("a capability of another form");
  }
  const std::uint32_t root = bytes.size() == kVersion3Bytes ? WordAt(bytes, kVersion2Bytes) : 0;
  ASSIGN_OR_RETURN(const std::uint32_t outside, ids.users.ToOutside(root));
  SetWord(bytes, 0, WithVersion(bytes, kVersion3));
  bytes.resize(kVersion3Bytes);
  SetWord(bytes, kVersion2Bytes, outside);
  return bytes;
}

}  // namespace

Result<Xattrs> ReadXattrs(int path_fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(path_fd);
  std::string names(65536, '\0');  // XATTR_LIST_MAX
  const ssize_t length = ::listxattr(path.c_str(), names.data(), names.size());
  if (length < 0 && errno == EOPNOTSUPP) return Xattrs{};
  if (length < 0) {
    return SyscallError(errno, "listxattr");
  }
  Xattrs xattrs;
  for (std::size_t at = 0; at < static_cast<std::size_t>(length);) {
    const std::string name = names.c_str() + at;
    at += name.size() + 1;
    std::string value(65536, '\0');  // XATTR_SIZE_MAX
    const ssize_t size = ::getxattr(path.c_str(), name.c_str(), value.data(), value.size());
    if (size < 0 && errno == ENODATA) continue;
    if (size < 0) {
      return SyscallError(errno, "getxattr " + name);
    }
    value.resize(static_cast<std::size_t>(size));
    xattrs[name] = std::move(value);
  }
  return xattrs;
}

void ShowXattrsInside(const UserIds& ids, Xattrs& xattrs) {
  if (ids.are_ours()) return;
  const auto show = [&ids](const std::string& name, std::string& value) {
    if (name == kCapability) return ShowCapabilityInside(ids, value);
    if (!name.starts_with(kAcl)) return true;
    return ChangeAcl(value,
                     [&ids](bool is_user, std::uint32_t& id) {
                       id = (is_user ? ids.users : ids.groups).ToInside(id);
                       return OkStatus();
                     })
        .ok();
  };
  for (auto xattr = xattrs.begin(); xattr != xattrs.end();) {
    xattr = show(xattr->first, xattr->second) ? std::next(xattr) : xattrs.erase(xattr);
  }
}

Result<std::string> XattrOutside(const UserIds& ids, std::string_view name, std::string value) {
  if (ids.are_ours()) return value;
  if (name == kCapability) return CapabilityOutside(ids, std::move(value));
  if (!name.starts_with(kAcl)) return value;
  RETURN_IF_ERROR(ChangeAcl(value, [&](bool is_user, std::uint32_t& id) -> Status {
    ASSIGN_OR_RETURN(id, (is_user ? ids.users : ids.groups).ToOutside(id));
    return OkStatus();
  }));
  return value;
}

}  // namespace stasis::archive
