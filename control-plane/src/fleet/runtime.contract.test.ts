import { createProcessRuntime } from './process-runtime.ts'
import { describeRuntime } from './testing/runtime-contract.ts'
import { silentLog, testInstanceEntry } from './testing/support.ts'

describeRuntime('process', async () => {
  const runtime = createProcessRuntime({ entry: testInstanceEntry, log: silentLog })
  return { runtime, image: 'none', dispose: () => runtime.close() }
})
