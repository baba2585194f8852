import crypto from 'node:crypto'
import { setFlagsFromString, startupSnapshot } from 'node:v8'

/**
 * An image holds a snapshot of the program after its modules have run (docker/bundle-inside.sh): a start then takes up that state,
 * and neither reads nor compiles them again. So nothing that belongs to one process may be made by a module while it is
 * loaded: all instances of an image would have it in common.
 */

const modulesOfEachStart = ['node:cluster', 'node:child_process', 'node:dns', 'node:perf_hooks', 'node:timers/promises']

if (startupSnapshot.isBuildingSnapshot()) {
  refuseRandomness()
  // node:http needs them and would compile them with each start; it cannot be part of a snapshot itself
  for (const name of modulesOfEachStart) process.getBuiltinModule(name)
  // loaded when they are first touched
  void [globalThis.TextDecoder, globalThis.ReadableStream, crypto.webcrypto.subtle]
}

/**
 * Runs `main`: now, or, in a snapshot, with each start from it.
 * @param rehearse - done once while a snapshot is made; what it compiles is part of it
 */
export function start(main: () => void, rehearse: () => void): void {
  const begin = () => {
    compileSooner()
    main()
  }
  if (startupSnapshot.isBuildingSnapshot()) {
    startupSnapshot.setDeserializeMainFunction(begin)
    rehearse()
  } else begin()
}

/**
 * V8 gives its last compiler what was called 3,000 times, and what it learned last 500 calls ago; one person's instance
 * seldom gets there. A tool call takes a tenth less time with this (docs/performance-instance.md). Neither is kept in a
 * snapshot, and neither may stand in NODE_OPTIONS.
 */
function compileSooner(): void {
  setFlagsFromString('--invocation-count-for-turbofan=1000')
  setFlagsFromString('--minimum-invocations-after-ic-update=100')
}

/** Session ids and keys that were drawn while a snapshot is made would be the same in every container. */
function refuseRandomness(): void {
  let isBuilding = true
  startupSnapshot.addDeserializeCallback(() => {
    isBuilding = false
  })
  const guard = (holder: object, name: string) => {
    const { value: drawn, configurable } = Object.getOwnPropertyDescriptor(holder, name) ?? {}
    if (typeof drawn !== 'function' || !configurable) return
    Object.defineProperty(holder, name, {
      configurable: true,
      writable: true,
      value(this: unknown, ...args: unknown[]) {
        if (isBuilding)
          throw new Error(
            `${name} was called while the snapshot is made: every instance would draw the same. Call it when the instance runs.`,
          )
        return drawn.apply(this, args)
      },
    })
  }
  guard(Math, 'random')
  for (const name of ['randomBytes', 'randomFill', 'randomFillSync', 'randomInt', 'randomUUID', 'randomUUIDv7'])
    guard(crypto, name)
  for (const name of ['generateKey', 'generateKeySync', 'generateKeyPair', 'generateKeyPairSync']) guard(crypto, name)
  for (const name of ['getRandomValues', 'randomUUID']) guard(Object.getPrototypeOf(crypto.webcrypto), name)
}
