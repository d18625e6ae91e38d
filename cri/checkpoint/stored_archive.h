// Archives in the kubelet's folder: whose they are.
#pragma once

#include <string_view>

#include "archive/archive.h"
#include "cri/container_facts.h"
#include "engine/base/status.h"

namespace stasis::cri {

/// The container that `archive`, a file of this name, is of: its specification says so, and its name, which the
/// kubelet made of what it knows. InvalidArgument: the two differ, as annotations of a pod may say anything.
Result<PodContainer> ContainerOf(const archive::Archive& archive, std::string_view name);

}  // namespace stasis::cri
