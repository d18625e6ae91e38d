// Source  shmem_show_options() in mm/shmem.c, proc_show_options() in fs/proc/root.c, devpts_show_options() in
//         fs/devpts/inode.c; tested on 6.18
#include "engine/mounts/mount_options.h"

#include <algorithm>
#include <string_view>

#include "engine/mounts/mount_entry.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

struct KnownOptions {
  std::string_view type;
  std::vector<std::string_view> with_value, flags;
};
const KnownOptions kOptions[] = {
    {"tmpfs",
     {"size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol"},
     {"inode32", "inode64", "noswap"}},
    {"proc", {"hidepid", "gid", "subset"}, {}},
    {"devpts", {"gid", "uid", "mode", "ptmxmode", "max"}, {}},
    {"sysfs", {}, {}},
    {"mqueue", {}, {}},
};
// What a security module of the host's shows: labels are those of the live container.
constexpr std::string_view kIgnored[] = {"rw",        "ro",          "seclabel",  "context",
                                         "fscontext", "rootcontext", "defcontext"};

}  // namespace

Result<std::vector<MountOption>> OptionsOf(const image::MntEntry& entry) {
  const std::string type = FsTypeName(entry);
  const auto known = std::ranges::find(kOptions, type, &KnownOptions::type);
  if (known == std::end(kOptions)) return Unimplemented("a file system that is not known");
  std::vector<MountOption> options;
  for (std::string_view rest = entry.options(); !rest.empty();) {
    std::string_view value = text::Cut(rest, ',');
    const std::string_view key = text::Cut(value, '=');
    const auto is_in = [&](const auto& list) {
      return std::ranges::find(list, key) != std::end(list);
    };
    if (is_in(kIgnored)) continue;
    if (is_in(known->flags)) {
      options.emplace_back(key, std::nullopt);
    } else if (is_in(known->with_value)) {
      options.emplace_back(key, value);
    } else {
      return Unimplemented("it has the option " + std::string(key));
    }
  }
  return options;
}

}  // namespace stasis::engine
