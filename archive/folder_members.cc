#include "archive/folder_members.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "archive/folder_names.h"
#include "archive/member_name.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr int kMaxDepth = 16;  // archives have two levels; Podman's artifacts a few more

/// openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS: whatever the folder's owner swaps in
/// meanwhile, nothing outside of it is opened. O_NONBLOCK: nor does a FIFO hold us.
Result<UniqueFd> OpenBeneath(int folder, const std::string& name, std::uint64_t flags) {
  open_how how = {};
  how.flags = flags | O_CLOEXEC | O_NONBLOCK;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, folder, name.c_str(), &how, sizeof(how))));
  if (!fd) {
    return SyscallError(errno, "open " + name);
  }
  return fd;
}

class FolderMembers : public engine::ImageSource {
 public:
  FolderMembers(UniqueFd folder, std::uint64_t max_members)
      : folder_(std::move(folder)), max_members_(max_members) {}

  Status ReadIndex() { return ReadFolder(".", "", 0); }

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    names.reserve(sizes_.size());
    for (const auto& [name, size] : sizes_) names.push_back(name);
    return names;
  }

  Result<std::uint64_t> Size(std::string_view name) const override {
    const auto found = sizes_.find(std::string(name));
    if (found == sizes_.end()) return NotFound("no member \"" + Printable(name) + "\"");
    return found->second;
  }

  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    ASSIGN_OR_RETURN(const UniqueFd fd, OpenMember(name));
    return Annotate(ReadExactAt(fd.get(), bytes, offset), name);
  }

  Result<engine::ImagePlace> Locate(std::string_view name) const override {
    ASSIGN_OR_RETURN(UniqueFd fd, OpenMember(name));
    return engine::ImagePlace{.fd = std::move(fd)};
  }

 private:
  Result<UniqueFd> OpenMember(std::string_view name) const {
    RETURN_IF_ERROR(Size(name).status());  // only names of the index are opened
    ASSIGN_OR_RETURN(UniqueFd fd, OpenBeneath(folder_.get(), std::string(name), O_RDONLY));
    struct stat st = {};
    if (::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode)) {
      return InvalidArgument(std::string(name) + " is no longer a regular file");
    }
    return fd;
  }

  Status ReadFolder(const std::string& path, const std::string& prefix, int depth) {
    if (depth > kMaxDepth) return InvalidArgument(Printable(prefix) + ": folders nested too deep");
    ASSIGN_OR_RETURN(const UniqueFd fd, OpenBeneath(folder_.get(), path, O_RDONLY | O_DIRECTORY));
    ASSIGN_OR_RETURN(const std::vector<std::string> entries, FolderNames(fd.get()));
    for (const std::string& entry : entries) {
      const std::string name = prefix + entry;
      RETURN_IF_ERROR(CheckMemberName(name));
      if (++count_ > max_members_) {
        return ResourceExhausted("over " + std::to_string(max_members_) + " members");
      }
      struct stat st = {};
      if (::fstatat(fd.get(), entry.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
        return SyscallError(errno, "stat " + name);
      }
      if (S_ISDIR(st.st_mode)) {
        RETURN_IF_ERROR(ReadFolder(name, name + "/", depth + 1));
      } else if (S_ISREG(st.st_mode)) {
        sizes_[name] = static_cast<std::uint64_t>(st.st_size);
      } else {
        return InvalidArgument("member \"" + Printable(name) +
                               "\" is neither a regular file nor a folder");
      }
    }
    return OkStatus();
  }

  const UniqueFd folder_;
  const std::uint64_t max_members_;
  std::uint64_t count_ = 0;
  std::unordered_map<std::string, std::uint64_t> sizes_;
};

}  // namespace

Result<std::unique_ptr<engine::ImageSource>> OpenFolderMembers(UniqueFd folder,
                                                               std::uint64_t max_members) {
  auto members = std::make_unique<FolderMembers>(std::move(folder), max_members);
  RETURN_IF_ERROR(members->ReadIndex());
  return members;
}

}  // namespace stasis::archive
