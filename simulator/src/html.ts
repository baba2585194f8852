/** Escapes text for HTML. */
export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, character => `&#${character.charCodeAt(0)};`)
}

/** A page as the front Tomcat of SDP makes it (docs/sdp-api.md 4.4). */
export function tomcatPage(status: number, title: string): string {
  return `<!doctype html><html lang="en"><head><title>HTTP Status ${status} \u2013 ${title}</title></head><body><h1>HTTP Status ${status} \u2013 ${title}</h1><hr class="line"/><p><b>Type</b> Status Report</p><h3>Apache Tomcat</h3></body></html>`
}

/** The login page that a wrong Accept header or a lost session may give. */
export const loginPage =
  '<!DOCTYPE html><html><head><title>Zoho Accounts</title></head><body><form id="login"><h1>Sign in</h1><p>to access ServiceDesk Plus</p><input name="LOGIN_ID"><button>Next</button></form></body></html>'
