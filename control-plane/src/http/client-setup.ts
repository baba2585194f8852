/** Name of the server in the user's client. */
const serverName = 'sdp'

export function endpointsOf(publicUrl: string, username: string): { sse: string; mcp: string } {
  return { sse: `${publicUrl}/u/${username}/sse`, mcp: `${publicUrl}/u/${username}/mcp` }
}

/**
 * What a person pastes to connect Claude Code: the command, or a `.mcp.json` that takes the key from the environment, so
 * that the file can be shared.
 */
export function clientSetup(
  publicUrl: string,
  username: string,
  key: string,
): { command: string; mcpJson: Record<string, unknown> } {
  const { sse } = endpointsOf(publicUrl, username)
  return {
    command: `claude mcp add --transport sse ${serverName} ${sse} --header "Authorization: Bearer ${key}"`,
    mcpJson: {
      // biome-ignore lint/suspicious/noTemplateCurlyInString: the client fills it in
      mcpServers: { [serverName]: { type: 'sse', url: sse, headers: { Authorization: 'Bearer ${SDP_MCP_API_KEY}' } } },
    },
  }
}
