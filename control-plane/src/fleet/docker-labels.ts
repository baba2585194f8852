/** Labels of what is ours on an engine: it is found again by them, and remembered nowhere. */
export const label = {
  installation: 'com.sdp-mcp.installation',
  userId: 'com.sdp-mcp.user-id',
  username: 'com.sdp-mcp.username',
  generation: 'com.sdp-mcp.generation',
  port: 'com.sdp-mcp.port',
  image: 'com.sdp-mcp.image',
  limits: 'com.sdp-mcp.limits',
  configHash: 'com.sdp-mcp.config-hash',
} as const

export type Owner = { id: string; username: string }

/** How the things of one installation are named and recognised; those of others on the same engine are never touched. */
export type Ownership = ReturnType<typeof ownershipOf>

export function ownershipOf(installation: string) {
  const networkPrefix = `sdp-mcp-${installation}-`
  return {
    networkPrefix,
    networkName: (user: Owner) => networkPrefix + user.username,
    /** labels of whatever belongs to a user */
    labels: (user: Owner): Record<string, string> => ({
      [label.installation]: installation,
      [label.userId]: user.id,
      [label.username]: user.username,
    }),
    isOurs: (labels: Record<string, string> | undefined) => labels?.[label.installation] === installation,
    /** for the engine: only what is ours, or of one user */
    filter: (userId?: string): string[] => [
      `${label.installation}=${installation}`,
      ...(userId ? [`${label.userId}=${userId}`] : []),
    ],
  }
}

/** A point in time as the engine writes it; its "never" is the year 1. */
export function instant(text: string | undefined): Date | null {
  const date = text ? new Date(text) : null
  return date && date.getTime() > 0 ? date : null
}
