import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { State } from './state.ts'

/** Reads a state written earlier; undefined when there is none. A damaged file is an error, never an empty desk. */
export async function readStateFile(path: string): Promise<State | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  return JSON.parse(text) as State
}

export interface StateKeeper {
  /** Notes that something changed; the file follows within `delayMs`. */
  changed(): void
  /** Writes what is still unwritten. */
  flush(): Promise<void>
}

/** Keeps a file equal to the state: write beside it, then rename, so that a reader or a crash never sees half a file. */
export function keepStateFile(path: string, state: () => State, delayMs = 100): StateKeeper {
  let timer: NodeJS.Timeout | undefined
  let dirty = false
  let writing = Promise.resolve()

  async function write() {
    if (!dirty) return
    dirty = false
    const besides = `${path}.${process.pid}.tmp`
    await mkdir(dirname(path), { recursive: true })
    await writeFile(besides, JSON.stringify(state()), { mode: 0o600 })
    await rename(besides, path)
  }
  function enqueue() {
    writing = writing.then(write).catch(error => {
      dirty = true
      process.stderr.write(`simulator: cannot write the state file: ${String(error)}\n`)
    })
    return writing
  }

  return {
    changed() {
      dirty = true
      timer ??= setTimeout(() => {
        timer = undefined
        void enqueue()
      }, delayMs).unref()
    },
    async flush() {
      clearTimeout(timer)
      timer = undefined
      await enqueue()
    },
  }
}
