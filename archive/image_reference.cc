#include "archive/image_reference.h"

#include <algorithm>

namespace stasis::archive {
namespace {

/// Source: OCI distribution-spec v1.1, "Pulling manifests": [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)* by slash.
bool IsRepository(std::string_view text) {
  bool after_letter = false;
  for (const char c : text) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (!letter && std::string_view("._-/").find(c) == std::string_view::npos) return false;
    if (c == '/' && !after_letter) return false;
    after_letter = letter;
  }
  return after_letter && text.front() != '/';
}

bool IsTag(std::string_view text) {
  return !text.empty() && text.size() <= 128 && text[0] != '.' && text[0] != '-' &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '_' || c == '.' || c == '-';
         });
}

/// "[::1]:5000", "host:5000", "localhost".
bool IsRegistry(std::string_view text) {
  return text.find_first_of(".:[") != std::string_view::npos || text == "localhost";
}

}  // namespace

Result<ImageReference> ParseImageReference(std::string_view text) {
  const std::string shown = "image name \"" + std::string(text) + "\"";
  if (text.find('@') != std::string_view::npos) {
    return InvalidArgument(shown + " has a digest, which is not chosen but computed; use a tag");
  }
  ImageReference reference;
  const std::size_t slash = text.find('/');
  if (slash != std::string_view::npos && IsRegistry(text.substr(0, slash))) {
    reference.registry = text.substr(0, slash);
    text.remove_prefix(slash + 1);
  } else {
    reference.registry = "docker.io";
  }
  const std::size_t colon = text.rfind(':');
  reference.tag = colon == std::string_view::npos ? "latest" : text.substr(colon + 1);
  reference.repository = text.substr(0, colon);
  if (reference.registry == "docker.io" && reference.repository.find('/') == std::string::npos) {
    reference.repository.insert(0, "library/");
  }
  if (!IsRepository(reference.repository) || !IsTag(reference.tag)) {
    return InvalidArgument(shown + " is none; write it as REGISTRY/NAME:TAG, in small letters");
  }
  return reference;
}

}  // namespace stasis::archive
