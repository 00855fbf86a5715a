# The Node addon: csrc/napi plus every layer. The include and library variables come from cmake-js.
#
# libstdc++ and libgcc stay dynamic: Node needs libstdc++ itself, and linking them in raises the glibc floor.
qformer_layer(napi "io;ops;cpu;core;backend")
target_include_directories(qformer_napi SYSTEM PRIVATE ${CMAKE_JS_INC})
# Nothing can be thrown into a worker that is being terminated; without the last definition the attempt ends the process.
target_compile_definitions(qformer_napi PRIVATE
  NAPI_VERSION=8 NODE_ADDON_API_CPP_EXCEPTIONS NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS)

add_library(${PROJECT_NAME} MODULE $<TARGET_OBJECTS:qformer_napi> ${CMAKE_JS_SRC})
qformer_link_layers(${PROJECT_NAME})
set_target_properties(${PROJECT_NAME} PROPERTIES PREFIX "" SUFFIX ".node" LINKER_LANGUAGE CXX)
target_link_libraries(${PROJECT_NAME} PRIVATE ${CMAKE_JS_LIB})
if(UNIX AND NOT APPLE)
  target_link_options(${PROJECT_NAME} PRIVATE -Wl,-z,relro,-z,now -Wl,--gc-sections)
endif()
