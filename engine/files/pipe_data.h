// What waits in a pipe or FIFO, and the size of its buffer.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// True for the first of the tree's open files that share the inode of `file`: it saves the
/// content.
bool IsFirstOfItsInode(const OpenFile& file, const FileDumpContext& context);

/// What the tree's open files of one pipe or FIFO are for.
struct PipeEnds {
  bool reader = false;
  bool writer = false;
  bool external = false;  ///< One of them is standard input or output of the container's owner.
};
PipeEnds EndsInTree(const OpenFile& file, const FileDumpContext& context);

/// Adds the record of `file`'s content to the image `image_name` ("pipes-data", "fifo-data"); the
/// content stays where it is. One record a packet, if it has any.
Status DumpPipeData(const OpenFile& file, std::string_view image_name, FileDumpContext& context);

/// Is there content of the pipe or FIFO `inode` in `image_name`?
Result<bool> HasPipeData(std::uint32_t inode, std::string_view image_name,
                         FileRestoreContext& context);

/// Puts the content of the pipe or FIFO `inode`, as saved in `image_name`, into `fd`, and gives it
/// its size. `fd` is a write end, or any when there is no content.
Status RestorePipeData(int fd, std::uint32_t inode, std::string_view image_name,
                       FileRestoreContext& context);

}  // namespace stasis::engine
