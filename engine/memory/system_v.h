// System V shared memory segments: shmget(2), shmat(2).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

struct AreaImage;
struct RestoredProcess;

/// What shmctl(2) tells of segment `id` in the IPC namespace of process `pid`. NotFound: no such segment.
Result<image::IpcShmEntry> ReadSegment(pid_t pid, int id);

/// Who is attached to a segment, and since when.
struct SegmentUse {
  std::uint64_t mappings = 0;    ///< By all processes, parts counted apart.
  std::int64_t last_change = 0;  ///< When one came or went last, in seconds (CLOCK_REALTIME).
  bool operator==(const SegmentUse&) const = default;
};
/// As ReadSegment.
Result<SegmentUse> ReadSegmentUse(pid_t pid, int id);

/// Its content, to be read. We are attached to it for that moment (shmctl(2): its times tell).
Result<UniqueFd> OpenSegment(pid_t pid, int id);

/// The segments of a tree under restore.
class SegmentRestorer {
 public:
  /// `segments` as the images have them. InvalidArgument: one of them twice.
  static Result<SegmentRestorer> Create(const std::vector<image::IpcShmEntry>& segments);

  /// Makes all of them, in the IPC namespace of `process` and by it, with their content. One that is there
  /// already with this id, key and size is taken over: its content too when others are attached.
  /// AlreadyExists: the id or the key is another segment's.
  Status MakeAll(RestoredProcess& process, const ImageSource& source,
                 const std::function<void(std::uint64_t)>& on_pages);
  /// shmat(2) of the whole segment of `area` at its place.
  Status Attach(RestoredProcess& process, const AreaImage& area) const;
  /// True for an area that is not the whole of its segment: after mprotect(2) or munmap(2).
  bool IsPart(const AreaImage& area) const;
  /// Attaches such areas, all that there are. InvalidArgument: one is not in its segment. Needs: all other areas
  /// of `process` in their places.
  Status AttachParts(RestoredProcess& process, std::span<const AreaImage> parts) const;
  /// Owners, modes, and the mark of those that end with their last process; once all are attached.
  Status Finish(pid_t pid) const;

 private:
  struct Segment {
    image::IpcShmEntry entry;
    bool made = false;
  };
  Status Make(RestoredProcess& process, std::uint64_t id, Segment& segment,
              const ImageSource& source, const std::function<void(std::uint64_t)>& on_pages);
  Status AttachTogether(RestoredProcess& process, std::span<const AreaImage> parts) const;
  Status Fill(RestoredProcess& process, const Segment& segment, const ImageSource& source,
              const std::function<void(std::uint64_t)>& on_pages) const;

  std::map<std::uint64_t, Segment> segments_;
};

}  // namespace stasis::engine
