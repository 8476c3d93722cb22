# Builds the CUDA engine in a folder of its own, BUILD, and fails at nothing: where the probe compiles and the engine does
# not, a CPU install goes on without it. Run by the build (cuda.cmake) where RWKV_CUDA is AUTO.
string(REPLACE "," ";" architectures "${ARCHITECTURES}")
execute_process(
  COMMAND ${CMAKE_COMMAND} -S ${SOURCE} -B ${BUILD} -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}
          -DCMAKE_CXX_COMPILER=${CXX_COMPILER} -DCMAKE_CUDA_COMPILER=${CUDA_COMPILER} -DCMAKE_BUILD_TYPE=${BUILD_TYPE}
          -DRWKV_PYTHON=OFF -DRWKV_CUDA=ON "-DRWKV_CUDA_ARCHITECTURES=${architectures}"
  RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT failed)
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD} --target rwkv_cuda
    RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
endif()
file(WRITE ${BUILD}/output.txt "${output}")
if(failed)
  file(REMOVE ${BUILD}/${LIBRARY})
  message(STATUS "CUDA engine: not built, ${CUDA_COMPILER} does not compile it (${BUILD}/output.txt)")
endif()
