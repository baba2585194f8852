/** Lets at most `width` pieces of work run at once; the others wait in line. */
export function createGate(width: number): { run<T>(work: () => Promise<T>): Promise<T> } {
  let busy = 0
  const line: (() => void)[] = []
  return {
    async run(work) {
      if (busy < width) busy++
      // whoever leaves hands its place over, so nobody overtakes the line
      else await new Promise<void>(enter => line.push(enter))
      try {
        return await work()
      } finally {
        const next = line.shift()
        if (next) next()
        else busy--
      }
    },
  }
}
