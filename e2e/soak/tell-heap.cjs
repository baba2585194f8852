// Loaded into the control plane by the soak: tells what is alive in it, after a full collection, to whoever asks its parent's channel.
process.on('message', message => {
  if (message !== 'soak: what is alive?') return
  globalThis.gc()
  const { heapUsed, external } = process.memoryUsage()
  process.send({ aliveBytes: heapUsed + external })
})
// asking must keep nobody from ending
process.channel.unref()
