// System V semaphores and message queues of an IPC namespace, one file each: semaphores.cc, message_queues.cc.
#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/user_ids.h"
#include "engine/image/image_file.h"
#include "engine/image/image_io.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Adds all sets, or queues, of the calling thread's namespace to `file` ("ipcns-sem", "ipcns-msg"), their owners as
/// in the user namespace of `ids`; nothing of them is changed. Unimplemented: a queue holds more than an image can.
Status DumpSemaphores(const UserIds& ids, ImageFileBuilder& file);
Status DumpMessageQueues(const UserIds& ids, ImageFileBuilder& file);

/// Makes those of image file `name`, in the IPC namespace of `root` and by it, with their ids, content, owners
/// and modes. What is there already with that id and key is another container's of the pod: it stays as it
/// is, and `notes` says so. AlreadyExists: id or key are another object's. A missing file has none.
Status RestoreSemaphores(RestoredProcess& root, const ImageSource& source, const std::string& name,
                         std::vector<std::string>& notes);
Status RestoreMessageQueues(RestoredProcess& root, const ImageSource& source,
                            const std::string& name, std::vector<std::string>& notes);

/// Ids of one of the files of /proc/sysvipc ("sem", "msg", "shm"), sysvipc(7): that of the calling thread's
/// namespace.
Result<std::vector<int>> ListObjects(const std::string& kind);

}  // namespace stasis::engine
