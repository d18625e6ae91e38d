// Namespaces that a tree on the host had to itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/checkpoint_images.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/mounts/fill_tmpfs.h"
#include "engine/mounts/mount_namespaces.h"
#include "engine/mounts/pending_mounts.h"
#include "engine/options.h"
#include "engine/tasks/other_namespaces.h"
#include "engine/tasks/own_network.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// What is to be done in them once files and memory are there.
struct LaterInNamespaces {
  PendingMounts pending_mounts;
  MountNamespaces mounts;              ///< Where its processes are in several.
  OtherNamespaces others;              ///< The same.
  std::vector<EmptyNetwork> networks;  ///< Filled by then.
  std::vector<PendingFirewall> firewalls;
  std::optional<image::IpcVarEntry> ipc_settings;  ///< See RestoreIpcSettings().
};

/// Puts `root`, which is to become the tree's, into the namespaces of `options.join_ns`. Then into a new one of
/// each other kind that the tree had to itself, while `root` is in ours: host name and System V objects of its
/// own, and mounts when all that it had are here too, but those that are marked as made inside: they are made.
/// `later` is to be done by the caller. FailedPrecondition: there is no making such a one,
/// with the next step. Where namespaces are a runtime's to make (`options.own_namespaces` is unset) only a note says
/// so.
Status RestoreNamespaces(RestoredProcess& root, const CheckpointImages& images,
                         const ImageSource& source, const Options& options, const FillTmpfs& fill,
                         LaterInNamespaces& later, std::vector<std::string>& notes);

/// InvalidArgument unless `text` is KIND:PID or KIND:PATH of a kind that can be joined.
Status CheckJoinNs(const std::string& text);

}  // namespace stasis::engine
