// /proc/PID/cgroup: where a task is in each hierarchy.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

struct CgroupMember {
  std::string controllers;  ///< "cpu,cpuacct", "name=systemd"; "" for version 2.
  std::string path;         ///< From the root that the reader's cgroup namespace has.
  auto operator<=>(const CgroupMember&) const = default;
};
using CgroupSet = std::vector<CgroupMember>;

/// In the order of the controllers' names. Source: proc_pid_cgroup(5).
Result<CgroupSet> ParseCgroups(std::string_view text);

/// The path in the hierarchy of `controllers`; null when the task is in no such one.
const std::string* PathIn(const CgroupSet& set, std::string_view controllers);

/// What leads from `base` to `path`, which is it or below it: "" or "/a/b". Null when it is elsewhere.
const char* Below(const std::string& base, const std::string& path);

}  // namespace stasis::engine
