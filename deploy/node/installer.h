// Puts stasisd between the kubelet and the runtime of a node, and takes it out again.
//
// At every moment, a kill or a power cut included, the kubelet's configuration names either the runtime
// itself or a socket that systemd makes at boot for an agent that is whole on the disk: what sends the
// kubelet to us is written last and taken back first.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "deploy/node/distribution.h"
#include "deploy/node/journal.h"
#include "deploy/node/services.h"

namespace stasis::node {

/// A file that the agent reads and no journal keeps, as it is secret and changes often.
struct Credential {
  std::string path;
  MaybeContent content;  ///< Without it, none is to be there.
};

struct InstallRequest {
  Hints hints;
  /// A folder NAME with bin/, lib/ and systemd/, which is copied to /opt/stasis/releases/NAME. Without
  /// it the programs of the distribution's package are used, in /usr/bin.
  std::string release = {};
  std::string config = {};                   ///< Content of stasisd's configuration file.
  std::vector<Credential> credentials = {};  ///< With a release only; gone with it.
  bool again =
      true;  ///< Also after a bypass, with the release and configuration that were bypassed.
};

class Installer {
 public:
  using Report = std::function<void(const std::string& line)>;

  Installer(NodeFiles files, Services services, Report report)
      : files_(std::move(files)), services_(services), report_(std::move(report)) {}

  /// Installs, upgrades or repairs; nothing is touched where all is as it should be.
  Status Install(const InstallRequest& request);

  /// Sends the kubelet back to the runtime and leaves the rest. For when stasisd cannot run.
  Status Bypass(const std::string& reason);

  /// Puts everything back. Does nothing where nothing is installed.
  Status Uninstall();

  /// The journal, and by an error what stands against its phase: the agent's socket does not answer, or a
  /// file is not as it was written.
  Result<Journal> Look() const;

 private:
  Status Carry(const InstallRequest& request, const Journal& old, Journal plan);
  std::string Restart() const;  // that it is done, or is not
  Status PutCredentials(const InstallRequest& request) const;
  Status StartAgent() const;
  Status ProbeAgent(const InstallRequest& request) const;
  Status RestartWithItsRuntime(const Journal& journal) const;
  Status SendBack(Journal& journal, const std::string& reason);
  Status Apply(const Journal& journal, bool sends_kubelet, bool& changed) const;
  Status UndoAll(const Journal& journal, bool sends_kubelet, bool& changed) const;
  Status Undo(const Change& change, bool& changed) const;
  void RemoveFolders(const std::vector<std::string>& uppermost_first) const;
  void RemoveOwnFolders() const;

  NodeFiles files_;
  Services services_;
  Report report_;
};

}  // namespace stasis::node
