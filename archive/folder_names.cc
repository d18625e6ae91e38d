#include "archive/folder_names.h"

#include <dirent.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "engine/base/io.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {

Result<std::vector<std::string>> FolderNames(int fd) {
  ASSIGN_OR_RETURN(UniqueFd own, OpenAt(fd, ".", O_RDONLY | O_DIRECTORY));  // an offset of its own
  const auto close = [](DIR* stream) { ::closedir(stream); };
  const std::unique_ptr<DIR, decltype(close)> stream(::fdopendir(own.get()), close);
  if (!stream) {
    return SyscallError(errno, "fdopendir");
  }
  (void)own.Release();  // closedir(3) closes it
  std::vector<std::string> names;
  while (true) {
    errno = 0;  // readdir(3): the one way to tell an error from the end
    const dirent* const entry = ::readdir(stream.get());
    if (entry == nullptr && errno != 0) {
      return SyscallError(errno, "readdir");
    }
    if (entry == nullptr) break;
    if (const std::string name = entry->d_name; name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace stasis::archive
