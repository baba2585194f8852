import { createProcessRuntime } from '../process-runtime.ts'
import { silentLog, testInstanceEntry, testSpec } from './support.ts'

// Starts one instance, tells its process id, and waits to be killed.
const runtime = createProcessRuntime({ entry: testInstanceEntry, log: silentLog })
const { id } = await runtime.start(await testSpec('none'))
process.send?.(id)
setInterval(() => {}, 60_000)
