# One target a folder, linked by its alias stasis::NAME, with its dependencies written out.

add_library(stasis_warnings INTERFACE)
target_compile_options(stasis_warnings INTERFACE -Wall -Wextra -Wshadow -Wconversion)
option(STASIS_WERROR "Treat warnings as errors" OFF)
if(STASIS_WERROR)
  target_compile_options(stasis_warnings INTERFACE -Werror)
endif()
option(STASIS_SANITIZE "Address and undefined-behaviour sanitizers" OFF)
if(STASIS_SANITIZE)
  target_compile_options(stasis_warnings INTERFACE -fsanitize=address,undefined -fno-omit-frame-pointer)
  target_link_options(stasis_warnings INTERFACE -fsanitize=address,undefined)
  # An empty std::optional, a container's end: what no sanitizer sees.
  target_compile_definitions(stasis_warnings INTERFACE _GLIBCXX_ASSERTIONS)
endif()

# stasis_library(NAME SOURCES file... DEPS target...)
function(stasis_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(stasis_${name} STATIC ${ARG_SOURCES})
  add_library(stasis::${name} ALIAS stasis_${name})
  target_include_directories(stasis_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(stasis_${name} PUBLIC ${ARG_DEPS} PRIVATE stasis_warnings)
  target_link_libraries(stasis_${name} INTERFACE $<$<BOOL:${STASIS_SANITIZE}>:stasis_warnings>)
endfunction()

# What the sources include and no compiler has to have run for: enough for `./dev lint`.
add_custom_target(generated)

# stasis_proto_library(NAME [GRPC] PROTOS file... DEPS target...): generated code, included by the
# proto file's path from the project's root. GRPC adds services.
function(stasis_proto_library name)
  cmake_parse_arguments(ARG "GRPC" "" "PROTOS;DEPS" ${ARGN})
  set(out ${CMAKE_BINARY_DIR}/gen)
  file(MAKE_DIRECTORY ${out})
  set(sources)
  foreach(proto ${ARG_PROTOS})
    cmake_path(ABSOLUTE_PATH proto NORMALIZE)
    file(RELATIVE_PATH relative ${CMAKE_SOURCE_DIR} ${proto})
    string(REGEX REPLACE "\\.proto$" "" stem ${relative})
    set(outputs ${out}/${stem}.pb.cc ${out}/${stem}.pb.h)
    set(flags --cpp_out=${out})
    if(ARG_GRPC)
      list(APPEND outputs ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h)
      list(APPEND flags --grpc_out=${out} --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin>)
    endif()
    add_custom_command(OUTPUT ${outputs}
      COMMAND protobuf::protoc -I${CMAKE_SOURCE_DIR} ${flags} ${relative}
      WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} DEPENDS ${proto} VERBATIM)
    list(APPEND sources ${outputs})
  endforeach()
  add_custom_target(stasis_${name}_code DEPENDS ${sources})
  add_dependencies(generated stasis_${name}_code)
  add_library(stasis_${name} STATIC ${sources})
  add_library(stasis::${name} ALIAS stasis_${name})
  target_include_directories(stasis_${name} SYSTEM PUBLIC ${out})
  target_link_libraries(stasis_${name} PUBLIC protobuf::libprotobuf ${ARG_DEPS})
endfunction()

# stasis_test(NAME SOURCES file... DEPS target...): one gtest program, every case known to ctest.
function(stasis_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} stasis::test_support stasis_warnings)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
    PROPERTIES TIMEOUT 120)
endfunction()
