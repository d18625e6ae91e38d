// Restore by CRI: a container is created from a checkpoint image as from any other, and runs on
// from there when it is started.
//
// CreateContainer   the request gets the base image and the placeholder (create_container.cc)
// StartContainer    the runtime starts the placeholder, which becomes the restored tree
//                   (start_container.cc)
// RemoveContainer   what is known of it is forgotten (restorer.cc)
#pragma once

#include <stop_token>
#include <string>

#include "archive/archive.h"
#include "cri/activity.h"
#include "cri/container_facts.h"
#include "cri/keyed_locks.h"
#include "cri/proxy/server.h"
#include "cri/restore/checkpoint_images.h"
#include "cri/restore/credentials.h"
#include "cri/restore/records.h"
#include "cri/restore/restore_options.h"

namespace stasis::cri {

class Restorer {
 public:
  /// All references outlive this.
  Restorer(Upstream& upstream, Records& records, KeyedLocks& locks, Activity& activity,
           RestoreOptions options)
      : upstream_(upstream),
        records_(records),
        locks_(locks),
        activity_(activity),
        images_(upstream),
        options_(std::move(options)) {}

  /// Enters all calls that have to do with it. This outlives the table.
  void AddTo(MethodTable& table);

  /// Sets right what an earlier stasisd left unfinished: half restored containers end, records of
  /// containers that are gone go. Waits for the runtime; ends early when `stop` says so.
  void Recover(const std::stop_token& stop);

 private:
  Reply CreateContainer(const IncomingCall& call);
  Result<Reply> CreateRestored(const IncomingCall& call,
                               runtime::v1::CreateContainerRequest& request,
                               const CheckpointImage& image);
  Result<Reply> CreateFrom(const IncomingCall& call, runtime::v1::CreateContainerRequest& request,
                           RestoredContainer record);
  Result<std::string> EarlierAnswer(const RestoredContainer& like, const CallLimits& limits);

  Reply StartContainer(const IncomingCall& call);
  Result<Reply> StartRestored(const IncomingCall& call, RestoredContainer record);
  Status FillContainer(const IncomingCall& call, const RestoredContainer& record,
                       const archive::Archive& checkpoint);
  Status ApplyRootfs(const ContainerFacts& facts, const archive::Archive& checkpoint);
  /// Ends the container and keeps the reason for its status.
  void Fail(RestoredContainer record, const Status& reason);

  Reply Remove(const IncomingCall& call);
  Reply RemoveSandbox(const IncomingCall& call);
  void Forget(const RestoredContainer& record);
  Status RecoverOnce(const CallLimits& limits);

  Upstream& upstream_;
  Records& records_;
  KeyedLocks& locks_;  // by container id, and by sandbox, name and attempt while there is none
  Activity& activity_;
  CheckpointImages images_;
  Credentials credentials_;
  const RestoreOptions options_;
};

EventSubject SubjectOf(const RestoredContainer& record);

/// What the client of `call` grants.
CallLimits LimitsOf(const IncomingCall& call);

/// For what is put in order again, which its client may not wait for.
CallLimits ForCleanup();

/// An answer that is an error.
Reply Failed(const Status& status);

}  // namespace stasis::cri
